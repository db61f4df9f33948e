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
