// What the live page and the report share. `paint` draws a frame and what the model looks at in it. A frame is {image,
// width, height}. A target has `area` (left, top, width and height in parts of the frame) and, where they were
// computed, `heat`, `light` and `guided`.
const camlens = (() => {
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const tables = Object.fromEntries(Object.entries(camlensColors).map(([name, text]) => [name, bytes(text)]));
  const MIN_SIDE = 112;
  // In percent, as the server's pictures have them by default.
  const OPACITY = 60, DARKNESS = 75;

  const surface = (width, height) => Object.assign(document.createElement('canvas'), {width, height});

  // Bilinear, between pixel centres, so that colours follow values and not the other way round.
  const enlarged = (values, width, height, factor) => {
    if (factor === 1) return values;
    const large = new Uint8Array(width * height * factor * factor);
    const place = (at, side) => Math.min(Math.max((at + 0.5) / factor - 0.5, 0), side - 1);
    for (let y = 0, to = 0; y < height * factor; y++) {
      const v = place(y, height), top = Math.floor(v), down = v - top, next = Math.min(top + 1, height - 1);
      for (let x = 0; x < width * factor; x++, to++) {
        const u = place(x, width), left = Math.floor(u), across = u - left, right = Math.min(left + 1, width - 1);
        const row = line => values[line * width + left] * (1 - across) + values[line * width + right] * across;
        large[to] = row(top) * (1 - down) + row(next) * down + 0.5;
      }
    }
    return large;
  };

  // A canvas of `layer`'s size or larger, whose pixels `color` writes: (data, offset, index).
  const painted = (layer, planes, color) => {
    const factor = Math.max(1, Math.ceil(MIN_SIDE / Math.max(layer.width, layer.height)));
    const [width, height] = [layer.width * factor, layer.height * factor];
    const large = planes.map(plane => enlarged(plane, layer.width, layer.height, factor));
    const canvas = surface(width, height);
    const context = canvas.getContext('2d');
    const image = context.createImageData(width, height);
    for (let at = 0; at < width * height; at++) color(image.data, at * 4, large, at);
    context.putImageData(image, 0, 0);
    return canvas;
  };

  const heat = (layer, colors, solid) => {
    const table = tables[colors];
    return painted(layer, [layer.levels, layer.opacities], (data, to, [levels, opacities], at) => {
      const from = levels[at] * 3;
      data[to] = table[from]; data[to + 1] = table[from + 1]; data[to + 2] = table[from + 2];
      data[to + 3] = solid ? 255 : opacities[at];
    });
  };

  const lit = layer => painted(layer, [layer.lit], (data, to, [light], at) => { data[to + 3] = light[at]; });

  // What `view` needs of a target; false when it was not computed.
  const has = (target, view) => view === 'frame' || Boolean(target && {
    overlay: target.heat, heat: target.heat, guided: target.guided, light: target.light,
  }[view]);

  const paint = (canvas, frame, target, view, {opacity = 0.6, colors = 'turbo', darkness = 0.75} = {}) => {
    if (canvas.width !== frame.width || canvas.height !== frame.height) {
      [canvas.width, canvas.height] = [frame.width, frame.height];
    }
    const context = canvas.getContext('2d');
    context.imageSmoothingQuality = 'high';
    const [width, height] = [frame.width, frame.height];
    const over = (context, image) => {
      const [left, top, across, down] = target.area;
      context.drawImage(image, left * width, top * height, across * width, down * height);
    };
    context.globalAlpha = 1;
    if (view === 'heat' || view === 'guided') {
      context.fillStyle = view === 'guided' ? '#7f7f7f' : '#0000';
      context.clearRect(0, 0, width, height);
      context.fillRect(0, 0, width, height);
    } else {
      context.drawImage(frame.image, 0, 0, width, height);
    }
    if (!has(target, view) || view === 'frame') return;
    if (view === 'overlay') {
      context.globalAlpha = opacity;
      over(context, heat(target.heat, colors, false));
      context.globalAlpha = 1;
    } else if (view === 'heat') {
      over(context, heat(target.heat, colors, true));
    } else if (view === 'guided') {
      over(context, target.guided);
    } else {
      const dark = surface(width, height);
      const shade = dark.getContext('2d');
      shade.imageSmoothingQuality = 'high';
      shade.fillRect(0, 0, width, height);
      shade.globalCompositeOperation = 'destination-out';
      over(shade, lit(target.light));
      context.globalAlpha = darkness;
      context.drawImage(dark, 0, 0);
      context.globalAlpha = 1;
    }
  };

  const element = (name, text, attributes = {}) => {
    const made = Object.assign(document.createElement(name), {textContent: text});
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  };

  // A row of a table: a name, a bar of `share` (0 to 1) that begins at `start`, and texts.
  const row = (name, share, texts, start = 0) => {
    const line = document.createElement('tr');
    const bar = element('td', '', {class: 'bar', 'aria-hidden': 'true'});
    const track = document.createElement('span'), fill = document.createElement('i');
    fill.style.width = `${Math.max(share * 100, 0)}%`;
    fill.style.marginLeft = `${start * 100}%`;
    track.append(fill);
    bar.append(track);
    line.append(element('th', name, {scope: 'row'}), bar, ...texts.map(text => element('td', text)));
    return line;
  };

  // Rows for stages and their milliseconds, [[name, ms]]: each bar begins where the one before it ends.
  const waterfall = (times, digits) => {
    const total = times.reduce((sum, [, ms]) => sum + ms, 0) || 1;
    let start = 0;
    return times.map(([name, ms]) => {
      const line = row(name.replace('_', ' '), ms / total, [`${ms.toFixed(digits)} ms`], start);
      start += ms / total;
      return line;
    });
  };

  // A target's class, and its layer where several targets have the class.
  const nameOf = (target, targets) => {
    const same = targets.filter(other => other.class === target.class);
    return same.length > 1 ? `${target.class} at ${target.layer}` : target.class;
  };

  // The controls of both pages: a button for each view, a slider for opacity or darkness, and the colours.
  const at = id => document.getElementById(id);
  const viewButtons = () => [...document.querySelectorAll('[data-view]')];
  const wish = () => {
    const strength = at('opacity').valueAsNumber / 100;
    return {opacity: strength, darkness: strength, colors: at('colors').value};
  };
  // Calls `chosen` with the view of the button that is pressed, and its default strength set.
  const onView = chosen => viewButtons().forEach(button => {
    button.onclick = () => {
      const {view} = button.dataset;
      viewButtons().forEach(other => other.setAttribute('aria-pressed', String(other === button)));
      at('opacity').value = view === 'light' ? DARKNESS : OPACITY;
      at('opacity-label').firstChild.textContent = view === 'light' ? 'Darkness ' : 'Opacity ';
      chosen(view);
    };
  });

  return {bytes, paint, has, row, waterfall, element, nameOf, at, viewButtons, wish, onView};
})();
