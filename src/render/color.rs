//! Colour maps.

/// A mapping from 0 to 1 to colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ColorMap {
    /// Blue, cyan, yellow, red: matplotlib's `jet`, the usual colours of CAMs.
    #[default]
    Jet,
    /// Jet's colours with even steps of brightness, by its authors' polynomial. The polynomial begins a little darker
    /// than the authors' table.
    Turbo,
    /// matplotlib's `viridis`: even steps for every kind of colour vision and in grey print.
    Viridis,
}

impl ColorMap {
    /// The colours of 0/255, 1/255, … 255/255, as RGB.
    pub fn table(self) -> [[u8; 3]; 256] {
        let gradient = match self {
            ColorMap::Jet => return std::array::from_fn(|at| jet(at as f32 / 255.0)),
            ColorMap::Turbo => colorous::TURBO,
            ColorMap::Viridis => colorous::VIRIDIS,
        };
        std::array::from_fn(|at| gradient.eval_continuous(at as f64 / 255.0).as_array())
    }
}

/// matplotlib's definition (`_cm.py`): each channel is linear between these `(position, level)` points.
const JET: [&[(f32, f32)]; 3] = [
    &[(0.0, 0.0), (0.35, 0.0), (0.66, 1.0), (0.89, 1.0), (1.0, 0.5)],
    &[(0.0, 0.0), (0.125, 0.0), (0.375, 1.0), (0.64, 1.0), (0.91, 0.0), (1.0, 0.0)],
    &[(0.0, 0.5), (0.11, 1.0), (0.34, 1.0), (0.65, 0.0), (1.0, 0.0)],
];

fn jet(at: f32) -> [u8; 3] {
    JET.map(|points| {
        let after = points.iter().position(|(position, _)| at <= *position).unwrap_or(points.len() - 1).max(1);
        let ((x0, y0), (x1, y1)) = (points[after - 1], points[after]);
        ((y0 + (y1 - y0) * (at - x0) / (x1 - x0)) * 255.0).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_map_has_the_colours_that_matplotlib_gives() {
        // matplotlib.colormaps[name](i, bytes=True) for i = 0, 64, 128, 192, 255
        let expected: [(ColorMap, [[u8; 3]; 5]); 3] = [
            (ColorMap::Jet, [[0, 0, 127], [0, 128, 255], [124, 255, 121], [255, 148, 0], [127, 0, 0]]),
            (ColorMap::Turbo, [[48, 18, 59], [40, 187, 235], [164, 252, 59], [250, 125, 32], [122, 4, 2]]),
            (ColorMap::Viridis, [[68, 1, 84], [58, 82, 139], [32, 144, 140], [94, 201, 97], [253, 231, 36]]),
        ];
        for (map, colors) in expected {
            let table = map.table();
            for (at, color) in [0, 64, 128, 192, 255].into_iter().zip(colors) {
                let off = (0..3).map(|channel| table[at][channel].abs_diff(color[channel])).max();
                // matplotlib cuts fractions off; Turbo's polynomial leaves the table at its dark ends.
                let allowed = if map == ColorMap::Turbo { 32 } else { 1 };
                assert!(off <= Some(allowed), "{map:?} {at}: {:?}, not {color:?}", table[at]);
            }
        }
    }
}
