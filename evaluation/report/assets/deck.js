"use strict";
document.documentElement.classList.add("script");

// Plays one of several sounds of equal length. Switching sounds keeps the position and makes no click.
class Deck {
  static context = null;
  static current = null;

  constructor(seconds, onChange) {
    this.seconds = seconds;
    this.onChange = onChange;
    this.loading = new Map();
    this.loop = false;
    this.region = [0, seconds];
    this.offset = 0;
    this.slot = null;
    this.voice = null;
    this.wanted = 0;
  }

  get playing() { return this.voice !== null; }

  get position() {
    if (!this.voice) return this.offset;
    const [from, to] = this.region;
    const at = this.voice.offset + Deck.context.currentTime - this.voice.start;
    if (!this.loop || at < to || this.voice.offset >= to) return Math.min(at, this.seconds);
    return from + (at - from) % (to - from);
  }

  load(id) {
    if (!this.loading.has(id)) {
      Deck.context ??= new AudioContext();
      const text = atob(document.getElementById(id).src.split(",", 2)[1]);
      const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
      this.loading.set(id, Deck.context.decodeAudioData(bytes.buffer));
    }
    return this.loading.get(id);
  }

  // `slot` is the active control; two controls can share a sound.
  async play(id, slot = id, at = null) {
    const turn = ++this.wanted;
    const buffer = await this.load(id);
    await Deck.context.resume();
    if (turn !== this.wanted) return;
    if (Deck.current && Deck.current !== this) Deck.current.pause();
    Deck.current = this;
    let offset = at ?? this.position;
    const [from, to] = this.region;
    if (offset >= this.seconds - 0.01 || (this.loop && at === null && (offset < from || offset >= to))) {
      offset = this.loop ? from : 0;
    }
    this.stop();
    this.start(buffer, id, offset);
    this.slot = slot;
    this.onChange();
    this.tick();
  }

  start(buffer, id, offset) {
    const context = Deck.context, source = context.createBufferSource(), gain = context.createGain();
    source.buffer = buffer;
    source.loop = this.loop;
    [source.loopStart, source.loopEnd] = this.region;
    source.connect(gain).connect(context.destination);
    gain.gain.setValueAtTime(0, context.currentTime);
    gain.gain.linearRampToValueAtTime(1, context.currentTime + 0.008);
    source.start(0, offset);
    this.voice = { source, gain, id, offset, start: context.currentTime };
    source.onended = () => {
      if (this.voice?.source !== source) return;
      this.voice = null;
      this.offset = 0;
      this.onChange();
    };
  }

  stop() {
    if (!this.voice) return;
    const { source, gain } = this.voice, now = Deck.context.currentTime;
    this.offset = this.position;
    this.voice = null;
    gain.gain.setValueAtTime(1, now);
    gain.gain.linearRampToValueAtTime(0, now + 0.008);
    source.stop(now + 0.01);
  }

  pause() {
    this.wanted += 1;
    this.stop();
    this.onChange();
  }

  seek(seconds) {
    const at = Math.max(0, Math.min(this.seconds - 0.02, seconds));
    if (this.voice) return this.play(this.voice.id, this.slot, at);
    this.offset = at;
    this.onChange();
  }

  setLoop(loop, from = this.region[0], to = this.region[1]) {
    this.offset = this.position;
    this.loop = loop;
    this.region = to - from < 0.05 ? [0, this.seconds] : [from, to];
    if (this.voice) this.play(this.voice.id, this.slot);
    else this.onChange();
  }

  tick() {
    if (!this.voice) return;
    this.onChange(true);
    requestAnimationFrame(() => this.tick());
  }
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
