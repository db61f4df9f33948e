//! Heat maps.

use super::{ColorMap, Map, RenderError};
use crate::frame::{Channels, Pixels};

/// The values at the two ends of the colour map.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ValueRange {
    /// The map's own lowest and highest finite value. A map of a single value gets the low end everywhere.
    #[default]
    OfTheMap,
    /// Fixed ends, so that a video does not flicker. Values beyond an end get the colour of that end.
    Fixed { low: f32, high: f32 },
}

impl ValueRange {
    /// The scale from values of `map` to 0 to 255.
    ///
    /// # Errors
    /// [`RenderError::Range`] when the fixed ends are not finite or not in ascending order.
    pub(super) fn levels(self, map: &Map<'_>) -> Result<Levels, RenderError> {
        let (low, high) = match self {
            ValueRange::Fixed { low, high } if low.is_finite() && high.is_finite() && low < high => (low, high),
            ValueRange::Fixed { low, high } => return Err(RenderError::Range { low, high }),
            ValueRange::OfTheMap => {
                let finite = || map.values().iter().copied().filter(|value| value.is_finite());
                (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max))
            }
        };
        let span = f64::from(high) - f64::from(low);
        let per_unit = if span > 0.0 && span.is_finite() { 255.0 / span } else { 0.0 };
        Ok(Levels { low: if low.is_finite() { f64::from(low) } else { 0.0 }, per_unit })
    }
}

/// A linear scale from a map's values to the 256 entries of a colour map.
pub(super) struct Levels {
    low: f64,
    per_unit: f64,
}

impl Levels {
    /// The entry of a value. NaN gets the low end.
    pub(super) fn of(&self, value: f32) -> usize {
        // The cast truncates, saturates, and turns NaN (also that of infinity · 0) into 0. `round` would be a function
        // call on the baseline instruction set.
        usize::from(((f64::from(value) - self.low) * self.per_unit + 0.5) as u8)
    }
}

/// A picture of the map at its own resolution.
///
/// # Errors
/// [`RenderError::Range`] for a wrong fixed range.
pub fn heat_map(map: &Map<'_>, range: ValueRange, color_map: ColorMap) -> Result<Pixels, RenderError> {
    let levels = range.levels(map)?;
    let colors = color_map.table();
    let data = map.values().iter().map(|&value| colors[levels.of(value)]).collect::<Vec<[u8; 3]>>().into_flattened();
    Ok(Pixels::upright(map.width(), map.height(), Channels::Rgb, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colors(values: &[f32], range: ValueRange) -> Vec<[u8; 3]> {
        let map = Map::new(values, 1, values.len() as u32).unwrap();
        let picture = heat_map(&map, range, ColorMap::Viridis).unwrap();
        picture.data().chunks_exact(3).map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
    }

    #[test]
    fn the_maps_own_range_fills_the_colour_map() {
        let table = ColorMap::Viridis.table();
        assert_eq!(colors(&[-1.0, 0.0, 1.0], ValueRange::OfTheMap), [table[0], table[128], table[255]]);
    }

    #[test]
    fn a_fixed_range_gives_a_value_the_same_colour_in_every_frame() {
        let range = ValueRange::Fixed { low: 0.0, high: 2.0 };
        let (one, other) = (colors(&[1.0, 0.1], range), colors(&[1.0, 900.0], range));
        let table = ColorMap::Viridis.table();
        assert_eq!(one[0], other[0]);
        assert_eq!(other[1], table[255]);
    }

    #[test]
    fn a_map_of_one_value_renders_uniformly_and_no_value_panics() {
        let cold = ColorMap::Viridis.table()[0];
        for value in [0.0, 3.0, f32::NAN, f32::INFINITY, f32::MAX] {
            assert_eq!(colors(&[value; 4], ValueRange::OfTheMap), [cold; 4], "{value}");
        }
        assert_eq!(colors(&[f32::MIN, f32::MAX], ValueRange::OfTheMap)[0], cold);
    }

    #[test]
    fn a_range_that_is_none_is_refused() {
        let map = Map::new(&[0.0], 1, 1).unwrap();
        for (low, high) in [(1.0, 1.0), (2.0, 1.0), (f32::NAN, 1.0), (0.0, f32::INFINITY)] {
            let error = heat_map(&map, ValueRange::Fixed { low, high }, ColorMap::Jet).unwrap_err();
            assert_eq!(error.field(), Some("options.pictures.fixed_range"));
        }
    }
}
