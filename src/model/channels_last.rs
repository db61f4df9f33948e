//! Inputs of the order [N, H, W, C], as models ported from TensorFlow and Keras take them.

use super::ModelError;
use super::dimension::Dimension;
use super::program::{Program, ProgramArgument, ProgramElement, ProgramInput, ProgramNode, ProgramOperation};
use crate::torch::{Operator, Value};

/// Numbers of channels of a picture: grey, colour, colour with alpha.
const CHANNELS: [i64; 3] = [1, 3, 4];

/// From [N, C, H, W] to [N, H, W, C].
const TO_CHANNELS_LAST: [i64; 4] = [0, 2, 3, 1];

/// Operators that leave the order of axes as it is.
const ELEMENTWISE: [&str; 29] = [
    "add",
    "add_",
    "sub",
    "sub_",
    "rsub",
    "mul",
    "mul_",
    "div",
    "div_",
    "neg",
    "pow",
    "sqrt",
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "to",
    "_to_copy",
    "type_as",
    "float",
    "half",
    "bfloat16",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "lift_fresh",
    "lift_fresh_copy",
    "abs",
];

/// Gives a program that takes [N, H, W, C] and moves its channels to the front an input of [N, C, H, W], which a first
/// node permutes. Whatever follows is as it was, so maps and gradients at the input come out as [N, C, H, W]. Any other
/// program stays as it is.
///
/// # Errors
/// An operator that this libtorch does not have.
pub fn turn(program: &mut Program) -> Result<(), ModelError> {
    let [input] = program.inputs.as_slice() else { return Ok(()) };
    let [batch, height, width, channels] = input.shape[..] else { return Ok(()) };
    let is_picture = matches!(channels, Dimension::Fixed(size) if CHANNELS.contains(&size));
    let could_be_channels = matches!(height, Dimension::Fixed(size) if CHANNELS.contains(&size));
    if !is_picture || could_be_channels || !moves_channels(program, &input.name) {
        return Ok(());
    }
    let name = input.name.clone();
    let turned = fresh(program, &name);
    program.nodes.iter_mut().flat_map(|node| &mut node.arguments).for_each(|argument| rename(argument, &name, &turned));
    for (_, output) in &mut program.outputs {
        if output.as_deref() == Some(name.as_str()) {
            *output = Some(turned.clone());
        }
    }
    let permute = ProgramNode {
        name: turned.clone(),
        operation: ProgramOperation::Aten(Operator::find("aten::permute", "")?),
        arguments: vec![
            ProgramArgument::Use(name.clone()),
            ProgramArgument::Literal(Value::Ints(TO_CHANNELS_LAST.to_vec())),
        ],
        outputs: vec![Some(turned)],
        calls: Vec::new(),
        no_grad: false,
    };
    program.nodes.insert(0, permute);
    let shape = vec![batch, channels, height, width];
    program.inputs = vec![ProgramInput { shape, channels_last: true, ..program.inputs.remove(0) }];
    Ok(())
}

/// Whether each way from the input leads, through elementwise operators alone, to a node that moves the last axis
/// behind the first one.
fn moves_channels(program: &Program, input: &str) -> bool {
    // The names that hold the picture, with the input's axis at each of their positions.
    let mut pictures = vec![(input, [0, 1, 2, 3])];
    let mut moved = false;
    for node in &program.nodes {
        let Some((_, axes)) = pictures.iter().find(|(name, _)| node.uses().any(|used| used == *name)).copied() else {
            continue;
        };
        let name = node.operator_name();
        let axes = match permutation(node, name) {
            Some(order) => order.map(|at| axes[at]),
            None if ELEMENTWISE.contains(&name) => axes,
            // A size, or an operator that runs over axes.
            None if matches!(name, "" | "sym_size" | "size") => continue,
            None => return false,
        };
        if axes[..2] == [0, 3] {
            moved = true;
        } else if let [Some(output)] = node.outputs.as_slice() {
            pictures.push((output, axes));
        }
    }
    moved
}

/// The axis that each position of a node's result has in its argument; `None` for what is no permutation of four axes.
fn permutation(node: &ProgramNode, name: &str) -> Option<[usize; 4]> {
    let axis = |index: usize| match node.arguments.get(index)? {
        ProgramArgument::Literal(Value::Int(axis)) => usize::try_from(axis.rem_euclid(4)).ok(),
        _ => None,
    };
    let axes = |index: usize| -> Option<Vec<usize>> {
        match node.arguments.get(index)? {
            ProgramArgument::Literal(Value::Ints(axes)) => {
                axes.iter().map(|axis| usize::try_from(axis.rem_euclid(4)).ok()).collect()
            }
            _ => None,
        }
    };
    let mut order = [0, 1, 2, 3];
    match name {
        "permute" => order = axes(1)?.try_into().ok()?,
        "transpose" | "swapaxes" | "swapdims" => order.swap(axis(1)?, axis(2)?),
        "movedim" | "moveaxis" => {
            let (from, to) = match (axis(1), axis(2)) {
                (Some(from), Some(to)) => (vec![from], vec![to]),
                _ => (axes(1)?, axes(2)?),
            };
            let mut places: [Option<usize>; 4] = [None; 4];
            from.iter().zip(&to).for_each(|(&from, &to)| places[to] = Some(from));
            let mut rest = (0..4).filter(|axis| !from.contains(axis));
            for (order, place) in order.iter_mut().zip(places) {
                *order = place.or_else(|| rest.next())?;
            }
        }
        _ => return None,
    }
    Some(order)
}

fn rename(argument: &mut ProgramArgument, from: &str, to: &str) {
    match argument {
        ProgramArgument::Use(name) if name == from => *name = to.to_owned(),
        ProgramArgument::List(elements) => {
            for element in elements {
                if let ProgramElement::Use(name) = element
                    && name == from
                {
                    *name = to.to_owned();
                }
            }
        }
        ProgramArgument::Use(_) | ProgramArgument::Literal(_) => {}
    }
}

/// A name that the program does not define.
fn fresh(program: &Program, input: &str) -> String {
    let mut name = format!("{input}_channels_last");
    let defined = |name: &str| {
        program.constants.contains(name)
            || program.nodes.iter().any(|node| node.outputs.iter().flatten().any(|output| output == name))
    };
    while defined(&name) {
        name.push('_');
    }
    name
}
