//! Ranks classes by their logits.

use std::cmp::Ordering;

/// Indices of the `count` highest values, the highest first; of all values if there are fewer. Of equal values, the
/// lower index comes first. NaN counts as −∞.
pub fn highest(values: &[f32], count: usize) -> Vec<usize> {
    let descending = |&a: &usize, &b: &usize| -> Ordering {
        let key = |i: usize| if values[i].is_nan() { f32::NEG_INFINITY } else { values[i] };
        key(b).total_cmp(&key(a)).then(a.cmp(&b))
    };
    let mut indices: Vec<usize> = (0..values.len()).collect();
    let count = count.min(indices.len());
    // Selection is linear in the number of classes; only the selected indices are sorted.
    if count < indices.len() && count > 0 {
        indices.select_nth_unstable_by(count - 1, descending);
    }
    indices.truncate(count);
    indices.sort_unstable_by(descending);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_rank_by_index_and_nan_ranks_last() {
        assert_eq!(highest(&[1.0, 5.0, f32::NAN, 5.0, 5.0], 2), [1, 3]);
        assert_eq!(highest(&[f32::NAN, 1.0, -1.0], 3), [1, 2, 0]);
    }

    #[test]
    fn a_count_beyond_the_number_of_values_gives_all_indices() {
        assert_eq!(highest(&[0.0, 1.0], 5), [1, 0]);
        assert!(highest(&[0.0, 1.0], 0).is_empty());
    }
}
