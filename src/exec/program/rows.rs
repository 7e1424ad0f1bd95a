//! Which rows of its inputs a row of a step's result depends on.

use super::{Kind, Step};
use crate::ir::Layout;

impl Step {
    /// The op, as messages call it, of which a token's result depends on other tokens than those that a
    /// KV cache keeps.
    pub(in crate::exec) fn mixing(&self) -> Option<String> {
        let own = match self.name.is_empty() {
            true => self.op.to_string(),
            false => format!("{} {:?}", self.op, self.name),
        };
        match &self.kind {
            Kind::Foreign(foreign) => foreign.mixing().map(str::to_string),
            Kind::Linear(linear) => (linear.layout != Layout::Rows).then_some(own),
            Kind::Native(native) => native.needs_whole_sequences().then_some(own),
            Kind::Moe(moe) => {
                let mut steps = moe.experts.iter().flat_map(|e| &e.steps);
                steps.find_map(Step::mixing)
            }
            Kind::Embedding(_) | Kind::Glu(_) => None,
            Kind::Grad(_) => Some(own),
        }
    }

    /// Whether each row of the result depends on the same row of the inputs only.
    pub(super) fn is_row_wise(&self) -> bool {
        match &self.kind {
            Kind::Linear(linear) => linear.layout == Layout::Rows,
            Kind::Embedding(_) | Kind::Moe(_) | Kind::Glu(_) => true,
            Kind::Native(native) => native.is_row_wise(),
            Kind::Foreign(_) | Kind::Grad(_) => false,
        }
    }
}
