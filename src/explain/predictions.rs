//! From logits to predictions and to the classes that are explained.

use std::cmp::Ordering;

use super::{ExplainError, Target};

/// One class as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prediction {
    pub class_index: u32,
    pub logit: f32,
    /// Softmax over all classes.
    pub probability: f32,
}

/// The `count` highest classes of a row of logits, the highest first; of equal ones, the lower index first.
pub fn top_predictions(logits: &[f32], count: usize) -> Vec<Prediction> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponential = |logit: f32| f64::from(logit - highest).exp();
    let sum: f64 = logits.iter().map(|&logit| exponential(logit)).sum();
    order(logits, count)
        .into_iter()
        .map(|index| {
            let logit = logits[index];
            Prediction { class_index: index as u32, logit, probability: (exponential(logit) / sum) as f32 }
        })
        .collect()
}

/// The classes that a row's targets mean, in the order asked for, each once.
pub fn choose_classes(logits: &[f32], targets: &[Target]) -> Result<Vec<u32>, ExplainError> {
    let classes = logits.len() as u32;
    let mut chosen = Vec::new();
    let mut choose = |class: u32| {
        if !chosen.contains(&class) {
            chosen.push(class);
        }
    };
    for target in targets {
        match *target {
            Target::Class(class) if class < classes => choose(class),
            Target::Class(class) => return Err(ExplainError::Class { class, classes }),
            Target::Top(count) if count == 0 || count > classes => return Err(ExplainError::Top { count, classes }),
            Target::Top(count) => order(logits, count as usize).into_iter().for_each(|index| choose(index as u32)),
        }
    }
    Ok(chosen)
}

/// Indices of the `count` highest values. NaN counts as lowest.
fn order(logits: &[f32], count: usize) -> Vec<usize> {
    let rank = |&a: &usize, &b: &usize| -> Ordering {
        let key = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
        key(b).total_cmp(&key(a)).then(a.cmp(&b))
    };
    let mut indices: Vec<usize> = (0..logits.len()).collect();
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
    fn the_highest_logit_comes_first_and_probabilities_are_a_softmax() {
        let top = top_predictions(&[0.0, 1.0, 3.0, 2.0], 2);
        assert_eq!((top[0].class_index, top[1].class_index), (2, 3));
        let sum: f64 = [0.0f64, 1.0, 3.0, 2.0].iter().map(|v| v.exp()).sum();
        assert!((f64::from(top[0].probability) - 3f64.exp() / sum).abs() < 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let top = top_predictions(&[1000.0, 999.0], 2);
        assert!((top[0].probability - 0.731_058_6).abs() < 1e-6);
    }

    #[test]
    fn of_equal_logits_the_lower_class_comes_first() {
        assert_eq!(choose_classes(&[1.0, 5.0, 5.0, 5.0], &[Target::Top(2)]).unwrap(), [1, 2]);
    }

    #[test]
    fn a_class_that_is_asked_for_twice_is_explained_once() {
        let targets = [Target::Class(2), Target::Top(2)];
        assert_eq!(choose_classes(&[0.0, 1.0, 3.0], &targets).unwrap(), [2, 1]);
    }

    #[test]
    fn a_class_beyond_the_last_is_refused_with_the_number_of_classes() {
        let error = choose_classes(&[0.0, 1.0], &[Target::Class(2)]).unwrap_err();
        assert_eq!(error.to_string(), "class 2 does not exist: the model has 2 classes, 0 to 1");
        assert!(choose_classes(&[0.0, 1.0], &[Target::Top(0)]).is_err());
        assert!(choose_classes(&[0.0, 1.0], &[Target::Top(3)]).is_err());
    }

    #[test]
    fn more_predictions_than_classes_gives_all_classes() {
        assert_eq!(top_predictions(&[0.0, 1.0], 5).len(), 2);
        assert!(top_predictions(&[0.0, 1.0], 0).is_empty());
    }
}
