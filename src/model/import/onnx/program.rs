//! Puts the program together: what the outputs need, under the names of the file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::builder::{Builder, Made};
use super::tensors::Tensors;
use crate::model::LoadLimits;
use crate::model::program::{Program, ProgramArgument, ProgramElement, ProgramInput};

/// The program that computes `outputs`: for each, its name in the file, and in the builder's program if it is a tensor.
pub fn program(
    builder: Builder,
    input: ProgramInput,
    outputs: Vec<(String, Option<String>)>,
    limits: &LoadLimits,
) -> Program {
    let Builder { made, mut constants, labels, origins, notices, .. } = builder;
    let needed = needed(&made, outputs.iter().filter_map(|(_, value)| value.as_deref()));
    let mut made: Vec<Made> =
        made.into_iter().filter(|made| made.node.outputs.iter().flatten().any(|name| needed.contains(name))).collect();
    constants.retain(|name, _| needed.contains(name));

    let mut names = Names { taken: HashSet::from([input.name.clone()]), known: HashMap::new() };
    names.known.insert(input.name.clone(), input.name.clone());
    let defined = constants.keys().chain(made.iter().flat_map(|made| made.node.outputs.iter().flatten()));
    for name in defined.cloned().collect::<Vec<_>>() {
        if let Some(label) = labels.get(&name) {
            names.give(&name, label);
        }
    }
    for name in constants.keys() {
        names.give(name, "constant");
    }
    // Of the nodes made for one of the file, the last one has its name.
    let last: BTreeMap<usize, usize> = made.iter().enumerate().map(|(index, made)| (made.origin, index)).collect();
    let mut node_names = HashSet::new();
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, made) in made.iter_mut().enumerate() {
        let origin = origins.get(made.origin).map(|origin| origin.name.clone()).unwrap_or_default();
        let number = counts.entry(made.origin).or_default();
        *number += 1;
        let wanted = if last[&made.origin] == index { origin } else { format!("{origin}#{number}") };
        made.node.name = unique(&mut node_names, &wanted);
        let node_name = made.node.name.clone();
        for output in made.node.outputs.iter().flatten() {
            names.give(output, &node_name);
        }
    }
    let nodes = made
        .into_iter()
        .map(|Made { mut node, .. }| {
            node.outputs = node.outputs.into_iter().map(|name| name.map(|name| names.of(&name))).collect();
            node.arguments.iter_mut().for_each(|argument| names.rename(argument));
            node
        })
        .collect::<Vec<_>>();
    let tensors = constants.into_iter().map(|(name, tensor)| (names.of(&name), tensor)).collect();
    let tensors = Tensors(tensors);
    let paths: BTreeSet<String> = nodes.iter().flat_map(|node| &node.calls).map(|call| call.path.clone()).collect();
    let outputs = outputs.into_iter().map(|(name, value)| (name, value.map(|value| names.of(&value)))).collect();
    Program {
        nodes,
        constants: tensors.0.keys().cloned().collect(),
        weights: Box::new(tensors),
        inputs: vec![input],
        outputs,
        paths,
        files: Vec::new(),
        notices: notices.into_iter().collect(),
        limits: limits.clone(),
    }
}

/// The names that the outputs depend on, and their own.
fn needed<'a>(made: &[Made], outputs: impl Iterator<Item = &'a str>) -> HashSet<String> {
    let mut needed: HashSet<String> = outputs.map(str::to_owned).collect();
    for Made { node, .. } in made.iter().rev() {
        if node.outputs.iter().flatten().any(|name| needed.contains(name)) {
            needed.extend(node.uses().map(str::to_owned));
        }
    }
    needed
}

/// New names for those of the builder.
struct Names {
    taken: HashSet<String>,
    known: HashMap<String, String>,
}

impl Names {
    /// Gives a name, or one like it that is free; a second one is not given.
    fn give(&mut self, name: &str, wanted: &str) -> String {
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let new = unique(&mut self.taken, wanted);
        self.known.insert(name.to_owned(), new.clone());
        new
    }

    fn of(&self, name: &str) -> String {
        self.known.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    fn rename(&self, argument: &mut ProgramArgument) {
        match argument {
            ProgramArgument::Use(name) => *name = self.of(name),
            ProgramArgument::List(elements) => {
                for element in elements {
                    if let ProgramElement::Use(name) = element {
                        *name = self.of(name);
                    }
                }
            }
            ProgramArgument::Literal(_) => {}
        }
    }
}

fn unique(taken: &mut HashSet<String>, wanted: &str) -> String {
    if taken.insert(wanted.to_owned()) {
        return wanted.to_owned();
    }
    let mut number = taken.len();
    loop {
        let name = format!("{wanted}#{number}");
        if taken.insert(name.clone()) {
            return name;
        }
        number += 1;
    }
}
