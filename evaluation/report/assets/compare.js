// Spectrograms with a common playhead. A click or the arrow keys seek; the button plays and pauses.
for (const clip of document.querySelectorAll(".clip")) {
  const rows = [...clip.querySelectorAll("[data-sound]")];
  if (!rows.length) continue;
  const pictures = rows.map((row) => row.querySelector(".picture"));
  const seconds = Number(pictures[0].querySelector("img").getAttribute("width")) / 100;
  const buttons = [];
  const deck = new Deck(seconds, () => {
    const at = deck.position, share = `${(100 * at) / seconds}%`;
    clip.classList.toggle("started", deck.playing || at > 0);
    rows.forEach((row, index) => {
      const active = deck.playing && deck.slot === row.dataset.sound;
      row.classList.toggle("playing", active);
      buttons[index].setAttribute("aria-pressed", active);
      pictures[index].style.setProperty("--at", share);
      pictures[index].setAttribute("aria-valuenow", at.toFixed(1));
      pictures[index].setAttribute("aria-valuetext", `${at.toFixed(1)} of ${seconds.toFixed(1)} seconds`);
    });
  });
  rows.forEach((row, index) => {
    const id = row.dataset.sound, name = row.querySelector(".name"), picture = pictures[index];
    const label = name.querySelector("span").textContent;
    const button = make("button", { type: "button", className: "play", "aria-label": `Play ${label}`, "aria-pressed": "false" });
    button.addEventListener("click", () => {
      if (deck.playing && deck.slot === id) deck.pause();
      else deck.play(id);
    });
    buttons.push(button);
    name.prepend(button);
    const attributes = { role: "slider", tabindex: 0, "aria-label": `Position in ${label}`, "aria-valuemin": 0, "aria-valuemax": seconds, "aria-valuenow": 0 };
    for (const [key, value] of Object.entries(attributes)) picture.setAttribute(key, value);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      deck.play(id, id, Math.max(0, seconds * (event.clientX - box.left) / box.width));
    });
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 0.5, ArrowUp: 0.5, ArrowLeft: -0.5, ArrowDown: -0.5, PageUp: 2, PageDown: -2 }[event.key];
      if (step) deck.seek(deck.position + step);
      else if (event.key === "Home") deck.seek(0);
      else if (event.key === "End") deck.seek(seconds);
      else if (event.key === " " || event.key === "Enter") button.click();
      else return;
      event.preventDefault();
    });
  });
}
