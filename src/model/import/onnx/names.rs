//! The modules that a file's nodes were part of, where its exporter left their names.

use std::collections::{BTreeMap, BTreeSet};

use super::message::NodeProto;
use crate::model::program::ModuleCall;

/// Where PyTorch's newer exporter writes a node's modules: `['', 'layer4', 'layer4.1', 'layer4.1.relu', 'relu_16']`.
const SCOPES: &str = "pkg.torch.onnx.name_scopes";
/// Deepest nesting of modules, and the longest text that describes them.
const MAX_DEPTH: usize = 64;
const MAX_BYTES: usize = 16 << 10;

/// Gives nodes their modules, in the file's order.
pub struct Modules {
    /// Every beginning of a node's name that ends before a `/`.
    prefixes: BTreeSet<String>,
    /// Of each node, the paths of its modules, if its exporter wrote any.
    scopes: Vec<Option<Vec<String>>>,
    /// The number of nodes so far.
    position: usize,
    /// The calls that the last node with scopes was part of, by path.
    last: BTreeMap<String, Call>,
    /// How often each module has been called.
    counts: BTreeMap<String, usize>,
}

/// A call of a module that has not ended.
#[derive(Debug, Clone)]
struct Call {
    number: usize,
    /// The child that its first node was part of.
    first: Option<String>,
}

impl Modules {
    pub fn new<'a>(nodes: impl Iterator<Item = &'a NodeProto> + Clone) -> Self {
        let mut prefixes = BTreeSet::new();
        for name in nodes.clone().map(NodeProto::name).filter(|name| name.starts_with('/') && name.len() <= MAX_BYTES) {
            let ends = name.match_indices('/').skip(1).take(MAX_DEPTH).map(|(at, _)| at);
            prefixes.extend(ends.map(|end| name[..end].to_owned()));
        }
        let scopes = with_neighbours(nodes.map(scopes_of).collect());
        Modules { prefixes, scopes, position: 0, last: BTreeMap::new(), counts: BTreeMap::new() }
    }

    /// The module calls of the next node, outermost first. A node without modules is one itself.
    pub fn of(&mut self, node: &NodeProto, name: &str) -> Vec<ModuleCall> {
        let scopes = self.scopes.get_mut(self.position).and_then(Option::take);
        self.position += 1;
        let calls = match scopes {
            Some(scopes) => self.of_scopes(scopes),
            None => self.of_name(node.name()),
        };
        if calls.is_empty() && !name.starts_with('/') {
            return vec![ModuleCall { key: name.to_owned(), path: name.to_owned() }];
        }
        calls
    }

    /// A module's call is the nodes that follow each other in it, until its first child begins again.
    fn of_scopes(&mut self, paths: Vec<String>) -> Vec<ModuleCall> {
        let mut now = BTreeMap::new();
        let mut calls = Vec::new();
        let mut is_new = false;
        for (index, path) in paths.iter().enumerate() {
            let child = paths.get(index + 1);
            let begins_again = |call: &Call| child.is_some() && call.first.as_ref() == child;
            let was_left = child.is_some_and(|child| !self.last.contains_key(child));
            let call = match self.last.get(path) {
                Some(call) if !(is_new || begins_again(call) && was_left) => call.clone(),
                _ => {
                    is_new = true;
                    let count = self.counts.entry(path.clone()).or_default();
                    *count += 1;
                    Call { number: *count, first: child.cloned() }
                }
            };
            calls.push(ModuleCall { key: format!("{path}@{}", call.number), path: path.clone() });
            now.insert(path.clone(), call);
        }
        self.last = now;
        calls
    }

    /// PyTorch's older exporter writes modules into names: `/layer4/layer4.1/relu_1/Relu`. A child of a sequence
    /// repeats the sequence's name, and the second call of a module has `_1` behind it.
    fn of_name(&self, name: &str) -> Vec<ModuleCall> {
        if !name.starts_with('/') || name.len() > MAX_BYTES {
            return Vec::new();
        }
        let mut calls: Vec<ModuleCall> = Vec::new();
        // The path before the last part, and that part.
        let (mut before, mut last) = (String::new(), String::new());
        let ends: Vec<usize> = name.match_indices('/').map(|(at, _)| at).take(MAX_DEPTH).collect();
        for pair in ends.windows(2) {
            let part = self.module(&name[..pair[0]], &name[pair[0] + 1..pair[1]]);
            let is_child =
                !last.is_empty() && part.strip_prefix(last.as_str()).is_some_and(|rest| rest.starts_with('.'));
            if !is_child {
                before = join(&before, &last);
            }
            last = part.to_owned();
            calls.push(ModuleCall { key: name[..pair[1]].to_owned(), path: join(&before, &last) });
        }
        calls
    }

    /// `relu` of `relu_1`, if the module around it has a `relu`, too.
    fn module<'a>(&self, around: &str, part: &'a str) -> &'a str {
        match part.rsplit_once('_') {
            Some((base, number))
                if !number.is_empty()
                    && number.bytes().all(|byte| byte.is_ascii_digit())
                    && self.prefixes.contains(&format!("{around}/{base}")) =>
            {
                base
            }
            _ => part,
        }
    }
}

/// The paths of a node's modules, outermost first, without the node's own name behind them.
fn scopes_of(node: &NodeProto) -> Option<Vec<String>> {
    let text = node.metadata_props.iter().find(|entry| entry.key() == SCOPES)?.value();
    if text.len() > MAX_BYTES {
        return None;
    }
    let inside = text.trim().trim_start_matches('[').trim_end_matches(']');
    let mut paths: Vec<&str> =
        inside.split(',').map(|part| part.trim().trim_matches(['\'', '"'])).take(MAX_DEPTH).collect();
    paths.pop();
    // A second call is written `layer4.1.relu@1`.
    let path = |path: &str| path.split_once('@').map_or(path, |(path, _)| path).to_owned();
    Some(paths.into_iter().filter(|path| !path.is_empty()).map(path).collect())
}

/// A node that an exporter's optimiser made has no scopes: it is in the modules that those before and after it share.
fn with_neighbours(mut scopes: Vec<Option<Vec<String>>>) -> Vec<Option<Vec<String>>> {
    let mut after: Option<Vec<String>> = None;
    let mut behind = vec![None; scopes.len()];
    for (index, own) in scopes.iter().enumerate().rev() {
        behind[index] = if own.is_none() { after.clone() } else { None };
        after = own.clone().or(after);
    }
    let mut before: Option<Vec<String>> = None;
    for (own, behind) in scopes.iter_mut().zip(behind) {
        match own {
            Some(own) => before = Some(own.clone()),
            None => {
                if let (Some(before), Some(behind)) = (&before, behind) {
                    let shared = before.iter().zip(&behind).take_while(|(before, behind)| before == behind);
                    *own = Some(shared.map(|(path, _)| path.clone()).collect());
                }
            }
        }
    }
    scopes
}

fn join(before: &str, part: &str) -> String {
    match (before, part) {
        ("", part) => part.to_owned(),
        (before, "") => before.to_owned(),
        (before, part) => format!("{before}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::StringStringEntryProto;
    use super::*;

    fn named(names: &[&str]) -> Vec<NodeProto> {
        names.iter().map(|name| NodeProto { name: Some((*name).to_owned()), ..NodeProto::default() }).collect()
    }

    fn innermost(nodes: &[NodeProto]) -> Vec<String> {
        let mut modules = Modules::new(nodes.iter());
        let paths = nodes.iter().map(|node| modules.of(node, node.name()).pop().map(|call| call.path));
        paths.map(Option::unwrap_or_default).collect()
    }

    #[test]
    fn names_of_the_older_exporter_are_the_modules_paths() {
        let nodes = named(&[
            "/conv1/Conv",
            "/layer4/layer4.1/conv1/Conv",
            "/layer4/layer4.1/relu/Relu",
            "/layer4/layer4.1/relu_1/Relu",
            "/features/features.0/features.0.2/Clip",
            "/encoder/layers/layers.11/attn/MatMul_1",
            "/encoder/layers_2/Add",
            "/Flatten",
            "resnet50/conv1_relu/Relu",
        ]);
        let paths = [
            "conv1",
            "layer4.1.conv1",
            "layer4.1.relu",
            "layer4.1.relu",
            "features.0.2",
            "encoder.layers.11.attn",
            "encoder.layers",
            "",
            "resnet50/conv1_relu/Relu",
        ];
        assert_eq!(innermost(&nodes), paths);
        let mut modules = Modules::new(nodes.iter());
        let [first, second] = [2, 3].map(|at| modules.of(&nodes[at], "").pop().unwrap());
        assert_ne!(first.key, second.key);
    }

    fn scoped(scopes: &str) -> NodeProto {
        let entry = StringStringEntryProto { key: Some(SCOPES.to_owned()), value: Some(scopes.to_owned()) };
        NodeProto { metadata_props: vec![entry], ..NodeProto::default() }
    }

    fn calls(nodes: &[NodeProto]) -> Vec<Vec<ModuleCall>> {
        let mut modules = Modules::new(nodes.iter());
        nodes.iter().map(|node| modules.of(node, "/")).collect()
    }

    #[test]
    fn scopes_of_the_newer_exporter_are_calls_where_they_are_left() {
        let calls = calls(&[
            scoped("['', 'layer4', 'layer4.1', 'layer4.1.conv1', 'conv2d_18']"),
            scoped("['', 'layer4', 'layer4.1', 'layer4.1.relu', 'relu_15']"),
            scoped("['', 'layer4', 'layer4.1', 'layer4.1.conv2', 'conv2d_19']"),
            NodeProto::default(),
            scoped("['', 'layer4', 'layer4.1', 'layer4.1.relu', 'relu_16']"),
            scoped("['', 'flatten']"),
        ]);
        assert_eq!(calls[1].last().unwrap().path, "layer4.1.relu");
        assert_eq!(calls[1][1], calls[4][1], "one call of the block");
        assert_ne!(calls[1][2], calls[4][2], "two calls of the module");
        assert_eq!(calls[3].last().unwrap().path, "layer4.1", "what its neighbours share");
        assert!(calls[5].is_empty());
    }

    #[test]
    fn a_module_whose_first_child_begins_again_is_called_again() {
        let calls = calls(&[
            scoped("['', 'block', 'block.0', 'conv2d']"),
            scoped("['', 'block', 'block.1', 'relu']"),
            scoped("['', 'block', 'block.0', 'conv2d_1']"),
            scoped("['', 'block', 'block.1', 'relu_1']"),
        ]);
        assert_eq!(calls[0][0], calls[1][0]);
        assert_ne!(calls[1][0], calls[2][0]);
        assert_eq!(calls[2][0], calls[3][0]);
    }
}
