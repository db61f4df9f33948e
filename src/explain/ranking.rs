//! The order of classes by their logits.

use std::cmp::Ordering;

/// Indices of the `count` highest values, the highest first; of equal values, the lower index first. NaN counts as
/// lowest.
pub fn highest(values: &[f32], count: usize) -> Vec<usize> {
    let rank = |&a: &usize, &b: &usize| -> Ordering {
        let key = |i: usize| if values[i].is_nan() { f32::NEG_INFINITY } else { values[i] };
        key(b).total_cmp(&key(a)).then(a.cmp(&b))
    };
    let mut indices: Vec<usize> = (0..values.len()).collect();
    let count = count.min(indices.len());
    if count < indices.len() && count > 0 {
        indices.select_nth_unstable_by(count - 1, rank);
    }
    indices.truncate(count);
    indices.sort_unstable_by(rank);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_values_the_lower_index_comes_first_and_nan_last() {
        assert_eq!(highest(&[1.0, 5.0, f32::NAN, 5.0, 5.0], 2), [1, 3]);
        assert_eq!(highest(&[f32::NAN, 1.0, -1.0], 3), [1, 2, 0]);
    }

    #[test]
    fn more_than_all_gives_all() {
        assert_eq!(highest(&[0.0, 1.0], 5), [1, 0]);
        assert!(highest(&[0.0, 1.0], 0).is_empty());
    }
}
