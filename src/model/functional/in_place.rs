//! Replaces in-place operators by their functional twins, and rebinds every name that shares the written memory.

use std::collections::BTreeSet;

use super::Functionaliser;
use super::views::Step;
use crate::model::ModelError;
use crate::model::operation::Operation;
use crate::model::program::{ProgramArgument, ProgramNode, ProgramOperation};
use crate::torch::Operator;

/// In-place operators that change a tensor's own shape and write no data.
const METADATA: [&str; 7] = ["detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"];
/// Functional twins that have no derivative.
const NO_DERIVATIVE: [&str; 3] = ["copy", "resize", "normal_functional"];

/// `aten::relu_` → `aten::relu`; none where ATen has none with the same arguments and a derivative.
fn functional_twin(operator: &Operator) -> Option<Operator> {
    let name = operator.name().strip_prefix("aten::")?;
    let plain = name.strip_suffix('_').filter(|n| !n.ends_with('_'))?;
    if name.starts_with("__") || NO_DERIVATIVE.contains(&plain) {
        return None;
    }
    let twin = Operator::find(&format!("aten::{plain}"), operator.overload()).ok()?;
    let names = |o: &Operator| o.schema().arguments.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
    (names(operator) == names(&twin)).then_some(twin)
}

impl Functionaliser {
    pub(super) fn in_place(&mut self, index: usize, node: &ProgramNode, written: usize) -> Result<(), ModelError> {
        let ProgramOperation::Aten(operator) = &node.operation else { return Ok(()) };
        let (Some(ProgramArgument::Use(target)), Some(Some(output))) =
            (node.arguments.get(written), node.outputs.first())
        else {
            return Err(ModelError::malformed("graph", format!("node {} writes no tensor", node.name)));
        };
        if METADATA.contains(&node.operator_name()) {
            return self.metadata(index, node, operator, written, target, output);
        }
        let arguments = self.bind(&node.arguments)?;
        let operation = match functional_twin(operator) {
            Some(twin) => Operation::Aten(twin),
            None => Operation::ClonedInPlace { operator: operator.clone(), written },
        };
        let value = self.fresh(output);
        self.push(&node.name, operation, arguments, vec![Some(value)], node)?;

        let (root, steps) = self.chain(target)?;
        let mine = self.geometry.get(target).cloned();
        let sharing = mine.as_ref().and_then(|mine| self.sharing.get(&mine.storage));
        self.spend(sharing.map_or(0, BTreeSet::len))?;
        let sharing = mine.as_ref().and_then(|mine| self.sharing.get(&mine.storage));
        let live: Vec<String> = sharing
            .into_iter()
            .flatten()
            .filter(|name| {
                *name != target
                    && *name != output
                    && self.current.contains_key(*name)
                    && self.last_use.get(*name).is_some_and(|&last| last > index)
            })
            .cloned()
            .collect();
        let (same, others): (Vec<_>, Vec<_>) = live.into_iter().partition(|n| self.geometry.get(n) == mine.as_ref());
        for name in same {
            self.current.insert(name, value);
        }
        if steps.is_empty() {
            self.current.insert(root.clone(), value);
        } else if !others.is_empty() {
            // The write goes through a view: first the base changes, …
            let base = self.write_back(&root, &steps, value, node)?;
            self.current.insert(root.clone(), base);
        }
        for name in others.iter().filter(|name| **name != root) {
            // … then every other live view of the base.
            let (other_root, steps) = self.chain(name)?;
            if other_root != root {
                return Err(ModelError::refused(
                    format!("node {} writes memory that {name} shares in a way that cannot be followed", node.name),
                    "clone the tensor before writing into it",
                ));
            }
            let derived = self.rederive(&root, &steps, node)?;
            self.current.insert(name.clone(), derived);
        }
        self.current.insert(target.clone(), value);
        self.current.insert(output.clone(), value);
        self.parent.insert(output.clone(), (target.clone(), None));
        if let Some(mine) = mine {
            self.place(output, mine);
        }
        Ok(())
    }

    /// An operator that changes the tensor's own shape, such as `x.transpose_(…)`.
    fn metadata(
        &mut self,
        index: usize,
        node: &ProgramNode,
        operator: &Operator,
        written: usize,
        target: &str,
        output: &str,
    ) -> Result<(), ModelError> {
        let plain = operator.name().trim_end_matches('_');
        let overload = if plain == "aten::transpose" { "int" } else { operator.overload() };
        let twin = Operator::find(plain, overload)?;
        let arguments = self.bind(&node.arguments)?;
        let value = self.fresh(output);
        // Keeps the old name, so that chains of views still start at the root.
        let old = format!("{target}#{index}");
        if let Some(link) = self.parent.remove(target) {
            self.parent.insert(old.clone(), link);
        }
        self.spend(self.parent.len())?;
        for link in self.parent.values_mut() {
            if link.0 == target {
                link.0.clone_from(&old);
            }
        }
        if let (Some(value), Some(geometry)) = (self.current.get(target).copied(), self.geometry.get(target).cloned()) {
            self.current.insert(old.clone(), value);
            self.place(&old, geometry);
        }
        let mut step_arguments = node.arguments.clone();
        step_arguments[written] = ProgramArgument::Use(old.clone());
        let step = Step::new(&twin, step_arguments, &old, 0);
        self.push(&node.name, Operation::Aten(twin), arguments, vec![Some(value)], node)?;
        self.current.insert(target.to_owned(), value);
        self.current.insert(output.to_owned(), value);
        if let Some(geometry) = self.geometry.get(output).cloned() {
            self.place(target, geometry);
        }
        self.parent.insert(target.to_owned(), (old, Some(step)));
        self.parent.insert(output.to_owned(), (target.to_owned(), None));
        Ok(())
    }
}
