//! Replaces in-place operators by their functional twins, and binds every name that shares the written memory to a new
//! value.

use std::collections::BTreeSet;

use super::Functionaliser;
use super::views::Step;
use crate::model::ModelError;
use crate::model::operation::Operation;
use crate::model::program::{ProgramArgument, ProgramNode, ProgramOperation};
use crate::torch::Operator;

/// In-place operators that change a tensor's shape, strides or autograd history and write no data.
const METADATA_ONLY: [&str; 7] = ["detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_"];
/// Functional twins that have no derivative.
const NO_DERIVATIVE: [&str; 3] = ["copy", "resize", "normal_functional"];

/// The functional twin of an in-place operator: `aten::relu_` → `aten::relu`. None unless ATen has a twin that takes
/// the same arguments and has a derivative.
fn functional_twin(operator: &Operator) -> Option<Operator> {
    let name = operator.name().strip_prefix("aten::")?;
    // Names with two underscores, such as `__ior__`, are Python's operators.
    let plain = name.strip_suffix('_').filter(|n| !n.ends_with('_'))?;
    if name.starts_with("__") || NO_DERIVATIVE.contains(&plain) {
        return None;
    }
    let twin = Operator::find(&format!("aten::{plain}"), operator.overload()).ok()?;
    let names = |o: &Operator| o.schema().arguments.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
    (names(operator) == names(&twin)).then_some(twin)
}

impl Functionaliser {
    /// Makes node `index` functional. The node writes into its argument `written`, the target.
    ///
    /// Names with the target's geometry are bound to the new value. If the target is a view and later nodes read other
    /// names of its storage, the new value is written back into the base, and those names are derived from the new
    /// base.
    pub(super) fn in_place(&mut self, index: usize, node: &ProgramNode, written: usize) -> Result<(), ModelError> {
        let ProgramOperation::Aten(operator) = &node.operation else { return Ok(()) };
        let (Some(ProgramArgument::Use(target)), Some(Some(output))) =
            (node.arguments.get(written), node.outputs.first())
        else {
            return Err(ModelError::malformed("graph", format!("node {} writes no tensor", node.name)));
        };
        if METADATA_ONLY.contains(&node.operator_name()) {
            return self.metadata_only(index, node, operator, written, target, output);
        }
        let arguments = self.bind(&node.arguments)?;
        let operation = match functional_twin(operator) {
            Some(twin) => Operation::Aten(twin),
            None => Operation::ClonedInPlace { operator: operator.clone(), written },
        };
        let value = self.fresh(output);
        self.push(&node.name, operation, arguments, vec![Some(value)], node)?;

        let (root, steps) = self.chain(target)?;
        let written_memory = self.geometry.get(target).cloned();
        let sharing = written_memory.as_ref().and_then(|memory| self.sharing.get(&memory.storage));
        self.spend(sharing.map_or(0, BTreeSet::len))?;
        let sharing = written_memory.as_ref().and_then(|memory| self.sharing.get(&memory.storage));
        // Other names of the storage that later nodes read.
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
        let (aliases, views): (Vec<_>, Vec<_>) =
            live.into_iter().partition(|name| self.geometry.get(name) == written_memory.as_ref());
        for name in aliases {
            self.current.insert(name, value);
        }
        if steps.is_empty() {
            self.current.insert(root.clone(), value);
        } else if !views.is_empty() {
            // The target is itself a view: the base gets a new value first, from which live views are derived below.
            let base = self.write_back(&root, &steps, value, node)?;
            self.current.insert(root.clone(), base);
        }
        for name in views.iter().filter(|name| **name != root) {
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
        if let Some(memory) = written_memory {
            self.place(output, memory);
        }
        Ok(())
    }

    /// Makes a node functional that changes only its target's metadata, such as `x.transpose_(…)`.
    ///
    /// Afterwards the target's name means a view of the unchanged tensor, which gets the name `target#index`. The names
    /// that were views of the target become views of `target#index`.
    fn metadata_only(
        &mut self,
        index: usize,
        node: &ProgramNode,
        operator: &Operator,
        written: usize,
        target: &str,
        output: &str,
    ) -> Result<(), ModelError> {
        let plain = operator.name().trim_end_matches('_');
        // Only `transpose` has a twin of another overload: `transpose_` has none, its twin is `transpose.int`.
        let overload = if plain == "aten::transpose" { "int" } else { operator.overload() };
        let twin = Operator::find(plain, overload)?;
        let arguments = self.bind(&node.arguments)?;
        let value = self.fresh(output);
        let old = format!("{target}#{index}");
        if let Some(parent) = self.parent.remove(target) {
            self.parent.insert(old.clone(), parent);
        }
        self.spend(self.parent.len())?;
        for (parent, _) in self.parent.values_mut() {
            if parent == target {
                parent.clone_from(&old);
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
