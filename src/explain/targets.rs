//! The classes that a row's targets name.

use super::ranking::highest;
use super::{ExplainError, Target};

/// The classes that `targets` name, in the order of the request, each once.
///
/// # Errors
/// [`ExplainError::NotFinite`] for logits that are not finite, [`ExplainError::Class`] and [`ExplainError::Top`] for a
/// target beyond the model's classes.
pub fn choose_classes(logits: &[f32], targets: &[Target]) -> Result<Vec<u32>, ExplainError> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(ExplainError::NotFinite);
    }
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
            Target::Top(count) => highest(logits, count as usize).into_iter().for_each(|index| choose(index as u32)),
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_logits_the_lower_class_comes_first() {
        assert_eq!(choose_classes(&[1.0, 5.0, 5.0, 5.0], &[Target::Top(2)]).unwrap(), [1, 2]);
    }

    #[test]
    fn a_class_that_is_named_twice_is_explained_once() {
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
    fn logits_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = choose_classes(&[0.0, bad], &[Target::Class(0)]).unwrap_err();
            assert!(matches!(error, ExplainError::NotFinite), "{error}");
        }
    }
}
