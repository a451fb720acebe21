/* Looks again at a page that can change, and shows what has: whatever stands in [data-live-part], and nothing else.

   What one has focused, pressed, selected, ticked or typed in stays as it is until one is done with it; what one has
   opened stays open, and nothing scrolls. `live.html` says how often and for how long, and has the words. */
(() => {
  "use strict";
  const bar = document.querySelector("[data-live]");
  if (!bar) return;
  const piece = (name) => bar.querySelector(`[data-live-${name}]`);
  const choice = piece("choice");
  const key = `messaging.live.${bar.dataset.live}`;
  const LONGEST = 60; // seconds between two looks at a site that does not answer
  const SLOWEST = 15; // seconds, to which looks slow down while one waits
  const KEPT = "details, .msg-scroll, .msg-code"; // what can be opened or scrolled within a part

  const token = /(name="csrfmiddlewaretoken"[^>]*? value=")[^"]*/g; // differs in each answer and says nothing
  const told = (part) => part.innerHTML.replace(token, "$1");
  const parts = (root) => new Map([...root.querySelectorAll("[data-live-part]")].map((one) => [one.dataset.livePart, one]));
  const words = (root) => [...root.querySelectorAll("[data-live-word]")].map((one) => one.textContent.replace(/\p{S}/gu, "").trim()).join(". ");
  const shown = new Map([...parts(document)].map(([name, part]) => [name, told(part)]));
  let said = words(document);
  let begun = Date.now();
  let failures = 0;
  let timer = 0;
  let isLooking = false;
  let isOver = false;

  const remembered = () => {
    try { return localStorage.getItem(key) || ""; } catch { return ""; }
  };
  const remember = () => {
    try { localStorage.setItem(key, choice.value); } catch { /* then until the page is left */ }
  };
  const isAltered = (control) => control.type === "checkbox" || control.type === "radio"
    ? control.checked !== control.defaultChecked
    : control.options
      ? [...control.options].some((option) => option.selected !== option.defaultSelected)
      : control.value !== control.defaultValue;
  const isInUse = (part) => {
    const selection = getSelection();
    return part.contains(document.activeElement) || part.querySelector(":active") !== null
      || (selection !== null && !selection.isCollapsed && selection.containsNode(part, true))
      || [...part.querySelectorAll("input:not([type=hidden], [type=submit]), select, textarea")].some(isAltered);
  };

  const swap = (part, fresh) => {
    const before = [...part.querySelectorAll(KEPT)].map((one) => [one.open, one.scrollLeft, one.scrollTop]);
    const height = part.offsetHeight;
    const isAbove = part.getBoundingClientRect().bottom < 0;
    part.replaceChildren(...fresh.childNodes);
    const after = [...part.querySelectorAll(KEPT)];
    if (after.length === before.length) {
      after.forEach((one, index) => {
        if (one.tagName === "DETAILS") one.open = before[index][0];
        [, one.scrollLeft, one.scrollTop] = before[index];
      });
    }
    if (isAbove && !CSS.supports("overflow-anchor", "auto")) scrollBy(0, part.offsetHeight - height);
  };

  const show = (root) => {
    let isWhole = true;
    const news = parts(root);
    const now = words(root); // before its nodes move
    for (const [name, part] of parts(document)) {
      const fresh = news.get(name);
      const text = fresh ? told(fresh) : "";
      if (text === shown.get(name)) continue;
      if (isInUse(part)) { isWhole = false; continue; }
      swap(part, fresh || document.createElement("div"));
      shown.set(name, text);
    }
    if (now !== said) piece("say").textContent = said = now;
    const time = root.querySelector("[data-live-at]");
    if (time) piece("at").textContent = time.textContent;
    return isWhole;
  };

  const stop = (text) => {
    isOver = true;
    clearTimeout(timer);
    piece("note").textContent = text;
  };
  const plan = () => {
    clearTimeout(timer);
    const elapsed = (Date.now() - begun) / 1000;
    if (isOver || choice.value === "0") return;
    if (elapsed > Number(bar.dataset.liveFor)) { stop(bar.dataset.liveLate); return; }
    const usual = Number(choice.value) || Math.max(Number(bar.dataset.live), Math.min(SLOWEST, elapsed / 20));
    timer = setTimeout(look, 1000 * (failures ? Math.min(LONGEST, usual * 2 ** failures) : usual));
  };
  const fail = () => {
    if (!failures) piece("note").textContent = bar.dataset.liveStale;
    failures += 1;
    plan();
  };

  async function look() {
    clearTimeout(timer);
    if (document.hidden || isLooking) { if (!isLooking) plan(); return; }
    isLooking = true;
    try {
      const answer = await fetch(location.href, {
        headers: { "X-Messaging-Look": "again" }, cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(30000),
      });
      if (answer.type === "opaqueredirect") { stop(bar.dataset.liveAway); return; }
      if (!answer.ok) { fail(); return; }
      const root = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (failures) piece("note").textContent = "";
      failures = 0;
      const isWhole = show(root);
      if (isWhole && !root.querySelector("[data-live]")) stop(bar.dataset.liveDone);
      else plan();
    } catch {
      fail();
    } finally {
      isLooking = false;
    }
  }

  const begin = () => {
    if (isOver) piece("note").textContent = "";
    isOver = false;
    begun = Date.now();
  };
  choice.value = remembered();
  if (choice.selectedIndex < 0) choice.value = "";
  choice.addEventListener("change", () => { remember(); begin(); plan(); });
  piece("now").addEventListener("click", (event) => { event.preventDefault(); begin(); look(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !isOver && choice.value !== "0") look(); });
  for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, () => { begun = Date.now(); }, { passive: true });
  piece("by-itself").hidden = false;
  plan();
})();
