// What is wrong on a page with what is ours, in words: for test_themes.py.
() => {
    const found = [], say = (what, one) => found.push(`${what}: ${one.outerHTML.slice(0, 120)}`);
    const shown = one => one.checkVisibility({visibilityProperty: true, opacityProperty: true}) && one.offsetWidth > 1;
    const clear = color => /^rgba\(.*, 0\)$|^transparent$/.test(color);
    const numbers = color => (color.match(/[\d.]+/g) || []).map(Number);
    const light = color => {
        const [r, g, b] = numbers(color).map(one => (one /= 255) <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = one => {
        for (; one; one = one.parentElement) {
            const color = getComputedStyle(one).backgroundColor;
            if ((numbers(color)[3] ?? 1) > 0.5) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const contrast = one => {
        const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const fields = "input:not([type=hidden], [type=radio], [type=checkbox]), select, textarea, a.button, .object-tools a";
    for (const one of document.querySelectorAll(fields.split(", ").map(name => `.msg-page ${name}`).join(", "))) {
        if (!shown(one)) continue;
        const style = getComputedStyle(one);
        if (!parseFloat(style.borderTopWidth) && clear(style.backgroundColor) && style.boxShadow === "none") say("bare", one);
    }
    for (const one of document.querySelectorAll(".msg-page, .msg-alert, .msg-tools"))
        if (shown(one) && (one.getBoundingClientRect().top < 0 || one.getBoundingClientRect().left < 0)) say("cut off", one);
    for (const one of document.querySelectorAll(".msg-page :is(h2, h3):not(fieldset *)"))
        if (!shown(one) || contrast(one) < 3) say("no heading to be seen", one);
    for (const one of document.querySelectorAll(".msg-page :is(p, dt, dd, td, th, li, a, label)"))
        if (one.innerText.trim() && shown(one) && contrast(one) < 2) say("cannot be read", one);
    for (const one of document.querySelectorAll(".msg-tools li, .msg-page :is(.object-tools, .msg-cards, .msg-links, .msg-timeline) > li"))
        if (getComputedStyle(one).display === "list-item" && getComputedStyle(one).listStyleType !== "none") say("dot", one);
    for (const row of document.querySelectorAll(".msg-page tr, #result_list tr")) {
        const boxes = [...row.cells].map(cell => {
            const range = document.createRange();
            range.selectNodeContents(cell);
            return [...range.getClientRects()].filter(box => box.width > 1 && box.height > 1);
        });
        boxes.forEach((mine, number) => boxes.slice(number + 1).flat().forEach(other => mine.forEach(box => {
            const apart = Math.max(other.left - box.right, box.left - other.right);
            if (apart < 3 && box.bottom > other.top + 1 && other.bottom > box.top + 1) say("collide", row.cells[number]);
        })));
    }
    return [...new Set(found)].slice(0, 8);
}
