// The report: a list of frames that can be filtered, sorted and played, and a large picture of the chosen one, with the
// frame and what the model looks at on the two sides of a slider.
const {at} = camlens;
const report = JSON.parse(at('frames').textContent);
const VIEWS = {overlay: 'Overlay', heat: 'Heat map', guided: 'Guided', light: 'Light'};
const state = {view: 'overlay', target: 0, shown: [], chosen: 0, timer: 0};
const {frames, stages} = report;
const share = frame => frame.p.length ? frame.p[0][1] : 0;
const total = frame => frame.s.reduce((sum, ms) => sum + ms, 0);
const percent = value => `${(value * 100).toFixed(1)} %`;
const top = frame => frame.p.length ? frame.p[0][0] : 'no class';

// The parts of a frame as paint.js wants them; decoded when they are needed first.
function targetsOf(frame) {
  frame.targets ??= frame.t.map(target => ({
    ...target,
    heat: target.heat && {
      ...target.heat, levels: camlens.bytes(target.heat.l), opacities: camlens.bytes(target.heat.o),
    },
    light: target.light && {...target.light, lit: camlens.bytes(target.light.l)},
    guided: target.guided && picture(target.guided),
  }));
  return frame.targets;
}

function picture(data) {
  const image = new Image();
  image.src = `data:image/jpeg;base64,${data}`;
  return image;
}

async function ready(frame) {
  frame.image ??= picture(frame.j);
  const images = [frame.image, ...targetsOf(frame).map(target => target.guided).filter(Boolean)];
  await Promise.all(images.map(image => image.decode()));
  return {image: frame.image, width: frame.w, height: frame.h};
}

// ------------------------------------------------------------------------------------------------- the large picture
async function show(index) {
  state.chosen = Math.max(0, Math.min(index, state.shown.length - 1));
  const frame = state.shown[state.chosen];
  at('viewer').hidden = !frame;
  if (!frame) return;
  const image = await ready(frame);
  if (frame !== state.shown[state.chosen]) return;
  const targets = targetsOf(frame);
  at('target').replaceChildren(...targets.map((target, number) => new Option(camlens.nameOf(target, targets), number)));
  const number = Math.min(state.target, Math.max(targets.length - 1, 0));
  if (targets.length) at('target').value = number;
  const target = targets[number];
  for (const button of camlens.viewButtons()) {
    button.disabled = !camlens.has(target, button.dataset.view);
  }
  const view = camlens.has(target, state.view) ? state.view : 'frame';
  camlens.paint(at('below'), image, target, view, camlens.wish());
  camlens.paint(at('above'), image, target, 'frame');
  at('below').setAttribute('aria-label', `${VIEWS[view] ?? 'Frame'} of ${frame.n}`);
  const says = `${top(frame)} ${frame.p.length ? percent(share(frame)) : ''}`;
  at('says').replaceChildren(says, camlens.element('span', `  ${frame.n}`, {class: 'faint'}));
  at('classes').replaceChildren(...frame.p.map(([name, value]) => camlens.row(name, value, [percent(value)])));
  at('times').replaceChildren(...camlens.waterfall(frame.s.map((ms, stage) => [stages[stage], ms]), 2));
  at('time-total').textContent = `${total(frame).toFixed(1)} ms in the server`;
  at('place').textContent = `frame ${state.chosen + 1} of ${state.shown.length}`;
  at('position').value = state.chosen;
  for (const [place, button] of [...at('list').children].entries()) {
    button.setAttribute('aria-pressed', String(place === state.chosen));
  }
}

const wipe = () => { at('above').style.clipPath = `inset(0 ${100 - at('wipe').valueAsNumber}% 0 0)`; };

// ---------------------------------------------------------------------------------------------------------- the list
const SORTS = {
  order: () => 0,
  surest: (a, b) => share(b) - share(a),
  unsure: (a, b) => share(a) - share(b),
  slowest: (a, b) => total(b) - total(a),
  class: (a, b) => top(a).localeCompare(top(b)),
};

const seen = new IntersectionObserver(entries => entries.forEach(async ({isIntersecting, target: button}) => {
  if (!isIntersecting || button.painted) return;
  button.painted = true;
  const {frame} = button;
  camlens.paint(button.querySelector('canvas'), await ready(frame), targetsOf(frame)[0], 'overlay', camlens.wish());
}), {rootMargin: '200px'});

function list() {
  const least = at('least').valueAsNumber / 100, wanted = at('class').value;
  at('least-says').textContent = `${at('least').value} %`;
  state.shown = frames
    .filter(frame => share(frame) >= least && (wanted === '' || top(frame) === wanted))
    .sort(SORTS[at('sort').value]);
  at('count').textContent = `${state.shown.length} of ${frames.length} frames`
    + (report.every > 1 ? `; the report has one of ${report.every} frames of the stream` : '');
  seen.disconnect();
  at('list').replaceChildren(...state.shown.map((frame, index) => {
    const button = camlens.element('button', '', {type: 'button', 'aria-pressed': 'false'});
    const canvas = camlens.element('canvas', '', {'aria-hidden': 'true', width: frame.w, height: frame.h});
    const probability = camlens.element('span', percent(share(frame)), {class: 'faint'});
    button.append(canvas, camlens.element('span', top(frame)), probability);
    button.setAttribute('aria-label', `${frame.n}: ${top(frame)}, ${percent(share(frame))}`);
    button.onclick = () => { stop(); show(index); };
    Object.assign(button, {frame});
    seen.observe(button);
    return button;
  }));
  at('position').max = Math.max(state.shown.length - 1, 0);
  show(0);
}

function stop() {
  state.timer = clearInterval(state.timer) || 0;
  at('play').textContent = 'Play';
}

at('play').onclick = () => {
  if (state.timer) return stop();
  state.timer = setInterval(() => show((state.chosen + 1) % state.shown.length), 120);
  at('play').textContent = 'Pause';
};
at('before').onclick = () => { stop(); show(state.chosen - 1); };
at('after').onclick = () => { stop(); show(state.chosen + 1); };
at('position').oninput = () => { stop(); show(at('position').valueAsNumber); };
at('wipe').oninput = wipe;
for (const id of ['class', 'least', 'sort']) at(id).oninput = () => { stop(); list(); };
for (const id of ['opacity', 'colors']) at(id).oninput = () => show(state.chosen);
at('target').onchange = () => { state.target = Number(at('target').value); show(state.chosen); };
camlens.onView(view => {
  state.view = view;
  show(state.chosen);
});
const counts = Map.groupBy(frames, top);
at('class').replaceChildren(new Option('every class', ''), ...[...counts]
  .sort(([, a], [, b]) => b.length - a.length)
  .map(([name, own]) => new Option(`${name} (${own.length})`, name)));
wipe();
list();
