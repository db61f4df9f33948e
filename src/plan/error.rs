//! Why a plan could not be compiled or run.

use tch::Device;

use crate::torch::OperatorError;

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("node {node}: {source}")]
    Node { node: String, source: OperatorError },
    /// A backend rewrote a node to an operator of its own and has no kernel for it.
    #[error("node {node}: {device:?} has no kernel for {operator}")]
    NoKernel { node: String, operator: String, device: Device },
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("the input has shape {got:?}, and {allowed} is allowed")]
    InputShape { got: Vec<i64>, allowed: String },
    /// An operator failed with an input of another size than the example's, which the program's own constraints allow.
    #[error(
        "the model does not run with an input of {}×{} (height × width): {failure}; it was exported with {}×{}",
        size[0], size[1], example[0], example[1]
    )]
    InputSize { size: [i64; 2], example: [i64; 2], failure: Box<PlanError> },
    /// The run was stopped between two steps by its [`super::Interrupt`].
    #[error("the run was interrupted")]
    Interrupted,
    /// The graph contradicts itself; a defect of the importer.
    #[error("the graph is inconsistent: {0}")]
    Inconsistent(String),
}

impl From<tch::TchError> for PlanError {
    fn from(error: tch::TchError) -> Self {
        PlanError::Operator(error.into())
    }
}

impl PlanError {
    /// The device or the host had no memory left: a smaller batch may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            PlanError::Node { source: OperatorError::OutOfMemory { .. }, .. }
                | PlanError::Operator(OperatorError::OutOfMemory { .. })
        )
    }
}
