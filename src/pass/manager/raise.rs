//! Raising ONNX nodes to linears before a pipeline looks at them.

use super::{RunError, Schedule};
use crate::ir::patch::normalize;
use crate::ir::{Module, Op, OpKind};
use crate::pass::{Pass, PassError, Remark, Rewrite};

/// Raises ONNX nodes to linears, where a pipeline has passes.
///
/// Done before a run or a plan, so that scopes and estimates see the linears;
/// `find-linears` in the pipeline says with which options. What no pass
/// changes is written as the nodes that it was.
///
/// # Errors
/// The pass failed, or its patch doesn't fit the module.
pub fn raise(module: &mut Module, schedule: &Schedule) -> Result<Vec<Remark>, RunError> {
    use crate::passes::find_linears::ENTRY;
    let is_onnx = |op: &Op| matches!(op.kind, OpKind::Onnx(_));
    let has_nodes = module
        .graphs
        .iter()
        .any(|graph| graph.ops.iter().any(is_onnx));
    if schedule.steps.is_empty() || !has_nodes {
        return Ok(Vec::new());
    }
    let stated = schedule.steps.iter().find(|step| step.name == ENTRY.name);
    let default;
    let pass = match stated {
        Some(step) => &step.pass,
        None => {
            default = (ENTRY.build)(serde_json::Map::new());
            default
                .as_ref()
                .map_err(|error| raise_error(module, error))?
        }
    };
    let Pass::Module(pass) = pass else {
        return Ok(Vec::new());
    };
    let mut remarks = Vec::new();
    let patch = pass
        .run(&mut Rewrite::new(module, &mut remarks))
        .map_err(|error| raise_error(module, &error))?;
    if !patch.is_empty() {
        patch.apply(module)?;
        *module = normalize(module);
    }
    remarks
        .iter_mut()
        .for_each(|remark| remark.pass = ENTRY.name.to_string());
    Ok(remarks)
}

fn raise_error(module: &Module, error: &PassError) -> RunError {
    RunError::Pass {
        pass: "find-linears".to_string(),
        site: module.name.clone(),
        message: error.to_string(),
    }
}
