//! The rule of mixtures of experts: each expert's region with its own way back in one region.

use std::collections::{HashMap, HashSet};

use super::{Backward, GradError, Parameter, depends, parameters, rules};
use crate::ir::{Grad, GradKind, Moe, Op, OpKind, Operand, Region, Training, ValueId};

/// Emits `grad.moe`.
pub(super) fn rule(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let OpKind::Moe(moe) = &op.kind else {
        return Ok(());
    };
    let Moe {
        top_k,
        normalize,
        ref experts,
    } = *moe;
    let (mut regions, mut owners) = (Vec::new(), Vec::new());
    for region in experts {
        let (region, own) = backward_region(b, op, region)?;
        regions.push(region);
        owners.extend(own);
    }
    let own = op.inputs.iter().map(|&input| b.see(input));
    let given = std::iter::once(Operand::Value(dy)).chain(own).collect();
    let mut wanted = vec![
        b.is_active(op.inputs.first()),
        b.is_active(op.inputs.get(1)),
    ];
    wanted.extend(owners.iter().map(|_| true));
    let grad = Grad {
        kind: GradKind::Op(Training::Moe { top_k, normalize }),
        matrix: None,
        experts: regions,
    };
    let made = b.emit(op, OpKind::Grad(Box::new(grad)), given, &wanted);
    let mut made = made.into_iter();
    for input in op.inputs.iter().take(2) {
        let gradient = made.next().flatten();
        b.give(op, Some(input), gradient);
    }
    for (parameter, value) in owners.into_iter().zip(made) {
        b.give_parameter(op, parameter, value);
    }
    Ok(())
}

/// A region that makes an expert's result, the gradient by its tokens, and those by its parameters,
/// from its tokens and `dy`; and whose those last are.
fn backward_region(
    b: &mut Backward<'_>,
    moe: &Op,
    region: &Region,
) -> Result<(Region, Vec<Parameter>), GradError> {
    let from = b.from;
    let (Some(&tokens), Some(Operand::Value(result))) =
        (region.inputs.first(), region.outputs.first())
    else {
        return Err(rules::none(moe, "an expert has no input or no output"));
    };
    // What belongs to the walk outside waits.
    let outside_ops = std::mem::take(&mut b.ops);
    let outside_values = std::mem::take(&mut b.by_value);
    let outside_parameters = std::mem::take(&mut b.by_parameter);
    let outside_names = b.renamed.clone();
    let outside_active = b.active.clone();
    let inside: HashSet<ValueId> = region
        .ops
        .iter()
        .filter_map(|&id| from.op(id))
        .flat_map(|op| op.results.iter().flatten().copied())
        .chain([tokens])
        .collect();
    for op in region.ops.iter().filter_map(|&id| from.op(id)) {
        let outer = |input: &Operand| match input {
            Operand::Value(v) => b.active.contains(v) && !inside.contains(v),
            _ => false,
        };
        if op.inputs.iter().any(outer) {
            return Err(rules::none(
                moe,
                "an expert reads a value from outside of it",
            ));
        }
    }
    b.active.insert(tokens);
    for op in region.ops.iter().filter_map(|&id| from.op(id)) {
        if depends(from, op, &b.parameters, &b.active) {
            b.active.extend(op.results.iter().flatten());
        }
    }
    let own_tokens = b.graph.add_value("", None);
    let dy = b.graph.add_value("", None);
    b.renamed = HashMap::from([(tokens, own_tokens)]);
    b.emit_again(&region.ops);
    b.by_value = HashMap::from([(*result, dy)]);
    let walked = region.ops.iter().rev().try_for_each(|&id| b.step(id));
    let mut outputs = vec![b.see(Operand::Value(*result))];
    let by_tokens = b.by_value.get(&tokens).copied();
    outputs.push(by_tokens.map_or(Operand::None, Operand::Value));
    // In the order of the region's ops, so that nothing depends on a map's.
    let mut owners: Vec<Parameter> = Vec::new();
    for op in region.ops.iter().filter_map(|&id| from.op(id)) {
        for parameter in parameters::of_op(op) {
            if b.by_parameter.contains_key(&parameter) && !owners.contains(&parameter) {
                owners.push(parameter);
            }
        }
    }
    outputs.extend(
        owners
            .iter()
            .filter_map(|p| b.by_parameter.get(p).map(|v| Operand::Value(*v))),
    );
    let ops = std::mem::replace(&mut b.ops, outside_ops);
    b.by_value = outside_values;
    b.by_parameter = outside_parameters;
    b.renamed = outside_names;
    b.active = outside_active;
    walked?;
    if by_tokens.is_none() {
        return Err(rules::none(
            moe,
            "an expert's result does not depend on its tokens",
        ));
    }
    let region = Region {
        name: region.name.clone(),
        inputs: vec![own_tokens, dy],
        outputs,
        ops,
        ..Region::default()
    };
    Ok((region, owners))
}
