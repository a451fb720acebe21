// Shows what goes on while it happens. Without it the page works too: that is what its link "Look again" is for.
const part = document.getElementById("now");
const PAUSE = 1500; // milliseconds

async function look() {
  const isRead = document.visibilityState === "visible" && !part.contains(document.activeElement);
  if (isRead) {
    try {
      const answer = await fetch(part.dataset.source);
      if (answer.ok) part.innerHTML = await answer.text();
    } catch {
      // The site is away, perhaps restarting: what is shown stays.
    }
  }
  setTimeout(look, PAUSE);
}

document.querySelector(".again").hidden = true;
setTimeout(look, PAUSE);
