// The live page. It reads messages from /live/STREAM (src/view/message.rs), keeps the newest frame, and draws it as the
// viewer wishes; opacity, colours, class and view are the page's own.
const {at} = camlens;
const VIEWS = {frame: 'Frame', overlay: 'Overlay', heat: 'Heat map', guided: 'Guided Grad-CAM', light: 'Light'};
const KEPT = 60;          // frames whose times are averaged
const SPEAKS_EVERY = 5000; // ms
const state = {
  view: 'overlay', target: '', paused: false, stream: null, shot: null, stages: [], news: null, rate: null,
  connection: null, tries: 0, spoken: {text: '', at: 0},
};

// ------------------------------------------------------------------------------------------------------ messages
async function* messages(body) {
  const reader = body.getReader();
  let held = new Uint8Array(0);
  const take = length => {
    const taken = held.slice(0, length);
    held = held.subarray(length);
    return taken;
  };
  const fill = async length => {
    const chunks = [held];
    let got = held.length;
    while (got < length) {
      const {value, done} = await reader.read();
      if (done) return false;
      chunks.push(value);
      got += value.length;
    }
    if (chunks.length > 1) {
      held = new Uint8Array(got);
      chunks.reduce((to, chunk) => (held.set(chunk, to), to + chunk.length), 0);
    }
    return true;
  };
  while (await fill(4)) {
    const length = new DataView(take(4).buffer).getUint32(0, true);
    if (!await fill(length)) return;
    const message = JSON.parse(new TextDecoder().decode(take(length)));
    if (!await fill(message.parts.reduce((sum, part) => sum + part, 0))) return;
    yield {...message, parts: message.parts.map(take)};
  }
}

const picture = bytes => createImageBitmap(new Blob([bytes], {type: 'image/jpeg'}));

// A message of a frame as paint.js wants it.
async function shotOf(message) {
  const {parts} = message;
  const image = await picture(parts[0]);
  const targets = await Promise.all(message.targets.map(async target => ({
    ...target,
    heat: target.heat && {...target.heat, levels: parts[target.heat.levels], opacities: parts[target.heat.opacities]},
    light: target.light && {...target.light, lit: parts[target.light.lit]},
    guided: target.guided === undefined ? undefined : await picture(parts[target.guided]),
  })));
  return {...message, image, targets};
}

function release(shot) {
  if (!shot) return;
  [shot.image, ...shot.targets.map(target => target.guided)].forEach(image => image?.close());
}

// ---------------------------------------------------------------------------------------------------- connection
function says(text, kind = '') {
  if (at('state').textContent !== text) at('state').textContent = text;
  at('state').className = `state ${kind}`;
}

async function connect() {
  state.connection?.abort();
  if (state.paused || document.hidden) return;
  const connection = state.connection = new AbortController();
  const ours = () => state.connection === connection && !connection.signal.aborted;
  try {
    const path = state.stream === null ? '/live' : `/live/${encodeURIComponent(state.stream)}`;
    const response = await fetch(path, {signal: connection.signal});
    if (!response.ok) throw new Error((await response.text()).trim() || response.statusText);
    for await (const message of messages(response.body)) {
      if (!ours()) return;
      state.tries = 0;
      if (message.kind === 'news') news(message);
      else await frame(message, ours);
    }
    if (ours()) says('the stream has ended', 'lost');
  } catch (error) {
    if (!ours()) return;
    says(error instanceof TypeError ? 'not connected' : error.message, 'lost');
  }
  state.tries += 1;
  setTimeout(() => { if (ours()) connect(); }, Math.min(500 * 2 ** state.tries, 5000));
}

function news(message) {
  const known = message.streams.map(stream => stream.id);
  options(at('stream'), message.streams.map(stream => [stream.id, `${stream.name || stream.id} · ${stream.model}`]));
  at('stream').parentElement.hidden = known.length === 0;
  const {stream} = message;
  if (!stream || stream.ended) {
    // Another stream, or the first one: look at the one that was opened last.
    if (known.length > 0) {
      look(known.at(-1));
    } else {
      state.stream = null;
      show(false);
      says('waiting for a stream');
    }
    return;
  }
  if (state.stream === null) state.stream = stream.id;
  at('stream').value = stream.id;
  const now = performance.now(), before = state.news;
  if (before?.id === stream.id && now > before.now) {
    state.rate = (stream.answered - before.answered) / (now - before.now) * 1000;
  }
  state.news = {...stream, now};
  show(true);
  says(state.shot ? 'live' : 'waiting for a frame', state.shot ? 'live' : '');
  facts();
}

async function frame(message, wanted) {
  const shot = await shotOf(message);
  // While it was decoded the page may have been paused, or may have turned to another stream.
  if (!wanted()) return release(shot);
  release(state.shot);
  state.shot = shot;
  state.stages.push(shot.stages);
  if (state.stages.length > KEPT) state.stages.shift();
  says('live', 'live');
  show(true);
  draw();
}

function look(stream) {
  if (state.stream !== stream) {
    release(state.shot);
    Object.assign(state, {stream, shot: null, stages: [], news: null, rate: null});
  }
  connect();
}

// ------------------------------------------------------------------------------------------------------- drawing
function options(select, entries) {
  const same = select.options.length === entries.length
    && entries.every(([value, text], index) =>
      select.options[index].value === value && select.options[index].textContent === text);
  if (same) return;
  const chosen = select.value;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (entries.some(([value]) => value === chosen)) select.value = chosen;
}

function show(open) {
  at('empty').hidden = open;
  at('stage').hidden = !open;
  at('side').hidden = !open;
}

function target() {
  const {targets} = state.shot;
  return targets.find(target => nameOf(target) === state.target) ?? targets[0];
}

const nameOf = target => camlens.nameOf(target, state.shot.targets);

function draw() {
  if (!state.shot) return;
  const {shot} = state;
  const entries = shot.targets.map(target => [nameOf(target), nameOf(target)]);
  const several = entries.length > 1;
  options(at('target'), [['', several ? 'the first' : entries[0]?.[1] ?? 'none'], ...entries.slice(several ? 0 : 1)]);
  const chosen = target();
  for (const button of camlens.viewButtons()) {
    const {view} = button.dataset;
    button.disabled = view !== 'all' && !camlens.has(chosen, view);
  }
  missing(chosen);
  const views = state.view === 'all' ? Object.keys(VIEWS).filter(view => camlens.has(chosen, view)) : [state.view];
  pictures(views.map(view => camlens.has(chosen, view) ? view : 'frame'), chosen);
  classes();
  times();
}

function pictures(views, chosen) {
  const box = at('pictures');
  box.classList.toggle('all', state.view === 'all');
  if (box.dataset.views !== views.join()) {
    box.dataset.views = views.join();
    box.replaceChildren(...views.map(view => {
      const figure = document.createElement('figure');
      figure.append(camlens.element('canvas', '', {role: 'img'}));
      if (state.view === 'all') figure.append(camlens.element('figcaption', VIEWS[view]));
      return figure;
    }));
  }
  const wish = camlens.wish();
  [...box.querySelectorAll('canvas')].forEach((canvas, index) => {
    camlens.paint(canvas, state.shot, chosen, views[index], wish);
    canvas.setAttribute('aria-label', `${VIEWS[views[index]]}${chosen ? ` for ${chosen.class}` : ''}`);
  });
}

function missing(chosen) {
  let text = '';
  if (!chosen) text = 'This stream asks for predictions alone: its client has no maps computed.';
  else if (chosen.no_evidence) text = `Nothing at ${chosen.layer} speaks for ${chosen.class} in this frame.`;
  else if (!chosen.guided) text = 'Guided Grad-CAM is not computed: the client of this stream asks for Grad-CAM alone.';
  else if (!chosen.heat) text = 'Grad-CAM is not computed for this stream: its client asks for other maps.';
  at('missing').textContent = text;
  at('missing').hidden = text === '';
}

function classes() {
  const {predictions} = state.shot;
  const known = predictions.some(one => one.probability > 0);
  const most = Math.max(...predictions.map(one => Math.abs(one.logit)), 1e-9);
  at('classes').replaceChildren(...predictions.map(one => camlens.row(one.class,
    known ? one.probability : Math.abs(one.logit) / most,
    [known ? `${(one.probability * 100).toFixed(1)} %` : one.logit.toFixed(2)])));
  const [top] = predictions;
  if (!top) return;
  const share = known ? ` ${(top.probability * 100).toFixed(0)} %` : '';
  const name = state.shot.tag ? `  frame ${state.shot.sequence}, ${state.shot.tag}` : `  frame ${state.shot.sequence}`;
  at('says').replaceChildren(`${top.class}${share}`, camlens.element('span', name, {class: 'faint'}));
  const now = performance.now();
  if (state.spoken.text !== top.class && now - state.spoken.at > SPEAKS_EVERY) {
    state.spoken = {text: top.class, at: now};
    at('spoken').textContent = `${top.class}${share}`;
  }
}

const median = numbers => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

function times() {
  const names = [...new Set(state.stages.flatMap(stages => stages.map(([name]) => name)))];
  const medians = names.map(name => median(state.stages.map(stages => stages.find(([own]) => own === name)?.[1] ?? 0)));
  const total = medians.reduce((sum, ms) => sum + ms, 0);
  at('stages').replaceChildren(...camlens.waterfall(names.map((name, index) => [name, medians[index]]), 1));
  const glass = state.shot.glass_to_answer_ms;
  at('total').textContent = `${total.toFixed(1)} ms in the server, median of ${state.stages.length} frames`
    + (glass === null ? '' : `; this frame ${glass.toFixed(0)} ms from glass to answer`);
}

function facts() {
  const {news} = state;
  const dropped = Object.entries(news.dropped);
  const entries = [
    ['policy', news.policy], ['answered', news.answered.toLocaleString('en')],
    ['rate', state.rate === null ? '–' : `${state.rate.toFixed(1)} frames/s`],
    ['failed', news.failed.toLocaleString('en')],
    ...dropped.map(([reason, count]) => [`dropped, ${reason.replace('_', ' ')}`, count.toLocaleString('en')]),
    ...(dropped.length ? [] : [['dropped', '0']]),
    ['model', news.model],
  ];
  at('facts').replaceChildren(...entries.flatMap(([name, value]) =>
    [camlens.element('dt', name), camlens.element('dd', value)]));
}

// -------------------------------------------------------------------------------------------------------- wishes
camlens.onView(view => {
  state.view = view;
  draw();
});
at('opacity').oninput = draw;
at('colors').onchange = draw;
at('target').onchange = () => { state.target = at('target').value; draw(); };
at('stream').onchange = () => look(at('stream').value);
at('pause').onclick = () => {
  state.paused = !state.paused;
  at('pause').textContent = state.paused ? 'Go on' : 'Pause';
  at('pause').setAttribute('aria-pressed', String(state.paused));
  if (state.paused) says('paused: nothing is drawn for this page');
  connect();
};
// A page that nobody sees costs nothing.
document.onvisibilitychange = connect;
at('stream').append(new Option('no stream', ''));
connect();
