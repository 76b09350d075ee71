// A blind test after ITU-R BS.1534. The state is one object, saved to localStorage after every change.
const testData = JSON.parse(document.getElementById("test-data")?.textContent ?? "null");
if (testData) {
  const root = document.getElementById("test"), place = `sctok-listening:${testData.test}`;
  const clips = new Map(testData.clips.map((clip) => [clip.id, clip]));
  let state = null, deck = null, view = null, storable = true;

  const shuffled = (items) => {
    const list = [...items];
    for (let last = list.length - 1; last > 0; last--) {
      const other = crypto.getRandomValues(new Uint32Array(1))[0] % (last + 1);
      [list[last], list[other]] = [list[other], list[last]];
    }
    return list;
  };
  const randomName = () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const fresh = (listener) => ({
    session: randomName(), listener, started: new Date().toISOString(), at: 0, finished: false, downloaded: false,
    order: shuffled(clips.keys()),
    trials: Object.fromEntries(testData.clips.map((clip) => [clip.id, { order: shuffled(clip.stimuli.map((s) => s.id)), scores: {}, seconds: 0 }])),
  });
  const rated = (id) => Object.keys(state.trials[id].scores).length;
  const complete = (id) => rated(id) === state.trials[id].order.length;

  function save() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
      storable = true;
    } catch {
      storable = false;
    }
  }
  function load() {
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      return kept?.order?.every((id) => clips.has(id) && kept.trials[id]) ? kept : null;
    } catch {
      return null;
    }
  }
  function forget() {
    state = null;
    try { localStorage.removeItem(place); } catch { storable = false; }
  }

  function results() {
    const trials = state.order.filter(complete).map((id) => {
      const clip = clips.get(id), trial = state.trials[id];
      const ratings = trial.order.map((stimulus) => {
        const { role, codec } = clip.stimuli.find((entry) => entry.id === stimulus);
        return { role, codec, score: trial.scores[stimulus] };
      });
      return { clip: clip.key, run: clip.run, domain: clip.domain, seconds: Math.round(trial.seconds), ratings };
    });
    return {
      format: "sctok-ratings", format_version: 1, test: testData.test, title: testData.title, session: state.session,
      listener: state.listener, started: state.started, saved: new Date().toISOString(),
      finished: state.finished, clips: testData.clips.length, trials,
    };
  }
  function download() {
    const blob = new Blob([JSON.stringify(results(), null, 1) + "\n"], { type: "application/json" });
    const name = `ratings-${state.listener.normalize("NFKD").replace(/[^\w-]+/g, "") || "listener"}-${state.session.slice(0, 6)}.json`;
    const link = make("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    if (state.finished) state.downloaded = true;
    save();
  }

  const button = (text, action, className = "plain") => {
    const element = make("button", { type: "button", className, textContent: text });
    element.addEventListener("click", action);
    return element;
  };
  const storageNote = () => make("p", { className: storable ? "note" : "warn", textContent: storable
    ? "Ratings are saved in this browser as you give them; you can close the page and resume later."
    : "This browser cannot save ratings: download the ratings before you close or reload the page." });
  const keys = () => {
    const rows = [["0", "play the reference"], ["1 … 9", "play the sound with this number"], ["Space", "play or pause"], ["↑ ↓", "on a slider: change by one point"],
      ["Page ↑ ↓", "on a slider: change by ten points"], ["Enter", "on a slider: play its sound and accept its rating"], ["← →", "elsewhere: move by one second"], ["L", "loop"], ["[ ]", "start, end of the loop"], ["N  P", "next, previous clip"]];
    return make("details", {}, make("summary", { textContent: "Keys" }),
      make("ul", { className: "keys" }, ...rows.map(([key, text]) => make("li", {}, make("kbd", { textContent: key }), ` ${text}`))));
  };

  function show(...children) {
    deck?.pause();
    deck = view = null;
    root.replaceChildren(...children);
  }

  function showStart() {
    document.documentElement.classList.remove("testing");
    const kept = load(), count = testData.clips.length;
    const most = Math.max(...testData.clips.map((clip) => clip.stimuli.length));
    const intro = make("p", { textContent: `${count} clip${count === 1 ? "" : "s"} with up to ${most} sounds each. ` +
      "For each clip, compare every numbered sound with the reference and rate its quality from 0 (bad) to 100 (excellent: no difference from the reference). " +
      "One of the sounds is the reference itself, and one lacks high frequencies on purpose. All sounds are shuffled and unnamed. Use headphones." });
    const name = make("input", { type: "text", autocomplete: "off", maxLength: 60, id: "listener" });
    const form = make("form", {}, make("label", { className: "field", htmlFor: "listener" }, "Your name or a pseudonym", name),
      make("button", { type: "submit", className: "main", textContent: "Begin" }));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      state = fresh(name.value.trim());
      save();
      showTrial();
    });
    if (!kept) return show(intro, form, storageNote());
    const done = kept.order.filter((id) => Object.keys(kept.trials[id].scores).length === kept.trials[id].order.length).length;
    const who = kept.listener || "an unnamed listener";
    const resume = button(kept.finished ? "Show the result" : "Resume", () => { state = kept; kept.finished ? showEnd() : showTrial(); }, "main");
    const restart = button("Start again", () => {
      if (!kept.downloaded && !confirm(`This removes the ratings of ${who} from this browser. They have not been downloaded.`)) return;
      forget();
      showStart();
    });
    show(intro, make("p", { textContent: `Started by ${who}: ${done} of ${count} clips rated.` }), make("div", { className: "bar" }, resume, restart), storageNote());
  }

  function showTrial() {
    document.documentElement.classList.add("testing");
    const id = state.order[state.at], clip = clips.get(id), trial = state.trials[id], total = state.order.length;
    show();
    const heading = make("h2", { tabIndex: -1, textContent: `Clip ${state.at + 1} of ${total}` });
    const open = clip.stimuli.find((entry) => entry.role === "reference").id;
    const sounds = [{ id: open, slot: "open" }, ...trial.order.map((stimulus) => ({ id: stimulus, slot: stimulus }))];
    const time = make("input", { type: "range", min: 0, max: clip.seconds, step: 0.1, value: 0, "aria-label": "Position" });
    const clock = make("span", { className: "clock" }), region = make("div", { className: "region" });
    const loop = button("Loop", () => deck.setLoop(!deck.loop));
    const from = button("from here", () => deck.setLoop(true, deck.position, deck.region[1] > deck.position ? deck.region[1] : clip.seconds));
    const to = button("to here", () => deck.setLoop(true, deck.region[0] < deck.position ? deck.region[0] : 0, deck.position));
    const whole = button("whole", () => deck.setLoop(deck.loop, 0, clip.seconds));
    const toggle = (sound) => (deck.playing && deck.slot === sound.slot ? deck.pause() : deck.play(sound.id, sound.slot));
    const plays = sounds.map((sound, index) => {
      const element = make("button", { type: "button", className: "play", "aria-pressed": "false", "aria-label": index ? `Play sound ${index}` : "Play the reference" }, index ? ` ${index}` : " Reference");
      element.addEventListener("click", () => toggle(sound));
      return element;
    });
    const openRow = make("span", {}, plays[0]);
    const message = make("p", { className: "note", role: "status" });
    const rows = sounds.slice(1).map((sound, index) => trialRow(sound, index + 1, plays[index + 1], toggle, trial, message));
    const places = [openRow, ...rows];

    time.addEventListener("input", () => deck.seek(Number(time.value)));
    deck = new Deck(clip.seconds, (moving) => {
      time.value = deck.position;
      clock.textContent = `${deck.position.toFixed(1)} of ${clip.seconds.toFixed(1)} s`;
      if (moving === true) return;
      loop.setAttribute("aria-pressed", deck.loop);
      region.style.left = `${(100 * deck.region[0]) / clip.seconds}%`;
      const share = (deck.region[1] - deck.region[0]) / clip.seconds;
      region.style.width = deck.loop && share < 1 ? `${100 * share}%` : 0;
      sounds.forEach((sound, index) => {
        const active = deck.playing && deck.slot === sound.slot;
        places[index].classList.toggle("playing", active);
        plays[index].setAttribute("aria-pressed", active);
      });
    });
    deck.loop = true;
    deck.onChange();
    for (const sound of sounds) deck.load(sound.id).catch(() => { message.textContent = "This browser cannot play FLAC; try another one."; message.className = "warn"; });

    const go = (step) => {
      const next = state.at + step;
      if (next < 0) return;
      const missing = sounds.slice(1).findIndex((sound) => !(sound.id in trial.scores));
      if (step > 0 && missing >= 0) {
        message.textContent = `Sound ${missing + 1} has no rating yet.`;
        rows[missing].querySelector("input").focus();
        return;
      }
      if (next >= total) state.finished = state.order.every(complete);
      else state.at = next;
      save();
      next >= total ? showEnd() : showTrial();
    };
    const last = state.at + 1 === total;
    const scale = make("div", { className: "scale", "aria-hidden": "true" }, make("div", {}, ...["bad", "poor", "fair", "good", "excellent"].map((word) => make("span", { textContent: word }))));
    const began = Date.now() - 1000 * trial.seconds;
    view = { sounds, toggle, go, loop, from, to, place: () => { trial.seconds = (Date.now() - began) / 1000; } };
    root.replaceChildren(
      make("progress", { max: total, value: state.order.filter(complete).length, "aria-label": "Clips rated" }), heading,
      make("div", { className: "transport" }, make("div", { className: "time" }, make("div", { className: "track" }, region, time), clock), make("div", { className: "bar" }, openRow, loop, from, to, whole)),
      scale, make("ol", { className: "trials" }, ...rows), message,
      make("div", { className: "bar" }, ...(state.at ? [button("Previous clip", () => go(-1))] : []), button(last ? "Finish" : "Next clip", () => go(1), "main"),
        make("span", { className: "end bar" }, button("Download so far", download), button("Leave", showStart))),
      storageNote(), keys());
    heading.focus();
    scrollTo(0, 0);
  }

  function trialRow(sound, number, play, toggle, trial, message) {
    const known = trial.scores[sound.id];
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": `Rating of sound ${number}` });
    slider.value = known ?? 50;
    const shown = make("span", { className: "score", textContent: known ?? "–" });
    const row = make("li", { className: known === undefined ? "trial open" : "trial" }, play, slider, shown);
    const describe = () => slider.setAttribute("aria-valuetext", sound.id in trial.scores ? slider.value : "not rated");
    const rate = () => {
      trial.scores[sound.id] = Number(slider.value);
      shown.textContent = slider.value;
      row.classList.remove("open");
      message.textContent = "";
      describe();
      view?.place();
      save();
    };
    slider.addEventListener("input", rate);
    slider.addEventListener("click", rate); // accepts the current position of the slider
    slider.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { rate(); toggle(sound); }
    });
    describe();
    return row;
  }

  function showEnd() {
    document.documentElement.classList.add("testing");
    const done = state.order.filter(complete).length;
    show(make("h2", { tabIndex: -1, textContent: state.finished ? "Done, thank you" : "Not every clip is rated" }),
      make("p", { textContent: `${done} of ${state.order.length} clips are rated. Send the file to the person who asked you to listen. sctok report --ratings scores it.` }),
      make("div", { className: "bar" }, button("Download ratings (JSON)", download, "main"),
        button("Back to the clips", () => { state.at = Math.max(0, state.order.findIndex((id) => !complete(id))); state.finished = false; save(); showTrial(); }), button("Leave", showStart)),
      storageNote());
    root.querySelector("h2").focus();
  }

  document.addEventListener("keydown", (event) => {
    if (!view || event.ctrlKey || event.metaKey || event.altKey || event.target.type === "text") return;
    const slider = event.target.type === "range", key = event.key.toLowerCase();
    if (/^\d$/.test(key)) { const sound = view.sounds[Number(key)]; if (sound) deck.play(sound.id, sound.slot); }
    else if (key === " " && event.target.tagName !== "BUTTON" && event.target.tagName !== "SUMMARY") {
      if (deck.playing) deck.pause();
      else { const sound = view.sounds.find((entry) => entry.slot === deck.slot) ?? view.sounds[0]; deck.play(sound.id, sound.slot); }
    }
    else if (key === "arrowleft" && !slider) deck.seek(deck.position - 1);
    else if (key === "arrowright" && !slider) deck.seek(deck.position + 1);
    else if (key === "l") view.loop.click();
    else if (key === "[") view.from.click();
    else if (key === "]") view.to.click();
    else if (key === "n") view.go(1);
    else if (key === "p") view.go(-1);
    else return;
    event.preventDefault();
  });
  showStart();
}
