//! Chains of views, from a name to the tensor that owns its memory.

use super::Functionaliser;
use crate::model::ModelError;
use crate::model::node::{Argument, ValueId};
use crate::model::operation::Operation;
use crate::model::operation::{Size, View, ViewArgument, WriteBack};
use crate::model::program::{ProgramArgument, ProgramElement, ProgramNode};
use crate::torch::Operator;

/// One view operator, which can be applied again to another base.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Name and overload.
    operator: (String, String),
    arguments: Vec<ProgramArgument>,
    /// Position of the base among the arguments; none when the base is inside a list.
    slot: Option<usize>,
    result: usize,
}

impl Step {
    pub(super) fn new(operator: &Operator, arguments: Vec<ProgramArgument>, parent: &str, result: usize) -> Self {
        let slot = arguments.iter().position(|a| matches!(a, ProgramArgument::Use(name) if name == parent));
        Step { operator: (operator.name().to_owned(), operator.overload().to_owned()), arguments, slot, result }
    }

    /// Elements to copy when the step is cloned.
    fn length(&self) -> usize {
        let elements =
            |argument: &ProgramArgument| if let ProgramArgument::List(list) = argument { list.len() } else { 1 };
        self.arguments.iter().map(elements).sum()
    }
}

impl Functionaliser {
    /// The base that a name is a view of, and the views in between, outermost first.
    ///
    /// A parent is defined before its child, and no name twice, so the walk ends.
    pub(super) fn chain(&mut self, name: &str) -> Result<(String, Vec<Step>), ModelError> {
        let mut steps = Vec::new();
        let mut at = name.to_owned();
        let mut spent = 0;
        while let Some((parent, step)) = self.parent.get(&at) {
            spent += 1 + step.as_ref().map_or(0, Step::length);
            steps.extend(step.clone());
            at.clone_from(parent);
        }
        self.spend(spent)?;
        steps.reverse();
        Ok((at, steps))
    }

    /// Applies the steps to the current value of `root`.
    pub(super) fn rederive(&mut self, root: &str, steps: &[Step], from: &ProgramNode) -> Result<ValueId, ModelError> {
        let mut value = self.value(root)?;
        for step in steps {
            let slot = step.slot.ok_or_else(|| cannot_follow(from))?;
            let mut arguments = self.bind(&step.arguments)?;
            arguments[slot] = Argument::Use(value);
            let view = self.fresh("view");
            let mut outputs = vec![None; step.result];
            outputs.push(Some(view));
            let operator = Operator::find(&step.operator.0, &step.operator.1)?;
            self.push(&format!("{}/view", from.name), Operation::Aten(operator), arguments, outputs, from)?;
            self.mark_synthetic();
            value = view;
        }
        Ok(value)
    }

    pub(super) fn write_back(
        &mut self,
        root: &str,
        steps: &[Step],
        new: ValueId,
        from: &ProgramNode,
    ) -> Result<ValueId, ModelError> {
        let mut arguments = vec![Argument::Use(self.value(root)?), Argument::Use(new)];
        let mut views = Vec::new();
        for step in steps {
            let slot = step.slot.ok_or_else(|| cannot_follow(from))?;
            let mut place = |f: &Self, name: &str| -> Result<usize, ModelError> {
                arguments.push(Argument::Use(f.value(name)?));
                Ok(arguments.len() - 1)
            };
            let mut view_arguments = Vec::new();
            for (i, argument) in step.arguments.iter().enumerate() {
                view_arguments.push(match argument {
                    _ if i == slot => ViewArgument::Base,
                    ProgramArgument::Literal(value) => ViewArgument::Literal(value.clone()),
                    ProgramArgument::Use(name) => ViewArgument::Argument(place(self, name)?),
                    ProgramArgument::List(elements) => ViewArgument::Sizes(
                        elements
                            .iter()
                            .map(|element| match element {
                                ProgramElement::Int(v) => Ok(Size::Int(*v)),
                                ProgramElement::Use(name) => Ok(Size::Argument(place(self, name)?)),
                                _ => Err(cannot_follow(from)),
                            })
                            .collect::<Result<_, _>>()?,
                    ),
                });
            }
            let operator = Operator::find(&step.operator.0, &step.operator.1)?;
            views.push(View { operator, arguments: view_arguments, result: step.result });
        }
        let written = self.fresh(root);
        let operation = Operation::WriteBack(WriteBack { views });
        self.push(&format!("{}/write_back", from.name), operation, arguments, vec![Some(written)], from)?;
        self.mark_synthetic();
        Ok(written)
    }

    fn mark_synthetic(&mut self) {
        if let Some(traced_node) = self.traced.last_mut() {
            traced_node.synthetic = true;
        }
    }
}

fn cannot_follow(node: &ProgramNode) -> ModelError {
    ModelError::refused(
        format!("node {} writes through a view that cannot be followed", node.name),
        "clone the tensor before writing into it",
    )
}
