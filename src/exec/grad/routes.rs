//! The gradient of a mixture of experts, whose choices are held.

use super::ExpertGrad;
use crate::exec::program::Step;
use crate::exec::run::{Run, misfit};
use crate::exec::tensor::Tensor;
use crate::exec::{ExecError, linear};

/// dx, the gradient by the router's logits, and gradients by the experts' parameters.
///
/// With `p` the softmax over all experts' logits and `w_e` the weight of a chosen expert,
/// `∂w_e/∂l_j = w_e (δ_ej − p_j)`, or with weights scaled to sum to one `w_e (δ_ej − w_j)` over the
/// chosen ones.
pub(super) fn backward(
    run: &mut Run,
    step: &Step,
    experts: &[ExpertGrad],
    top_k: usize,
    normalize: bool,
) -> Result<Vec<Option<Tensor>>, ExecError> {
    let (dy, x, logits) = (
        run.operand(step, 0)?,
        run.operand(step, 1)?,
        run.operand(step, 2)?,
    );
    let (shape, logits_shape, width) = (x.shape.clone(), logits.shape.clone(), x.width());
    let (rows, count) = (x.rows(), logits.width());
    if dy.shape != shape || logits.rows() != rows || count != experts.len() {
        let problem = format!(
            "{:?}, {shape:?} and {:?} of a router",
            dy.shape, logits.shape
        );
        return Err(misfit(step, problem));
    }
    let scores = run.floats(step, 2)?.to_vec();
    let chosen = linear::choose(&scores, count, top_k, normalize);
    let (x, dy) = (run.floats(step, 1)?.to_vec(), run.floats(step, 0)?.to_vec());
    let mut dx = vec![0f32; x.len()];
    // The gradient by each chosen expert's weight, at [token, expert].
    let mut by_weight = vec![0f32; rows * count];
    let mut parameters = Vec::new();
    for (e, expert) in experts.iter().enumerate() {
        let mine: Vec<(usize, f32)> = chosen
            .iter()
            .enumerate()
            .flat_map(|(t, picks)| picks.iter().filter(|p| p.0 == e).map(move |p| (t, p.1)))
            .collect();
        if mine.is_empty() {
            let none = |&size: &usize| Some(Tensor::f32(&[size], vec![0.0; size]));
            parameters.extend(expert.sizes.iter().map(none));
            continue;
        }
        let gather = |from: &[f32], weigh: bool| -> Vec<f32> {
            let row = |&(t, w): &(usize, f32)| {
                let factor = if weigh { w } else { 1.0 };
                from[t * width..(t + 1) * width]
                    .iter()
                    .map(move |v| v * factor)
            };
            mine.iter().flat_map(row).collect()
        };
        let [tokens, slopes] = expert.inputs;
        run.set(tokens, Tensor::f32(&[mine.len(), width], gather(&x, false)));
        run.set(slopes, Tensor::f32(&[mine.len(), width], gather(&dy, true)));
        run.steps(&expert.steps)?;
        let mut results = expert.outputs.iter().map(|&arg| run.get(arg).cloned());
        let mut next = || {
            results
                .next()
                .flatten()
                .and_then(|t| t.floats().map(<[f32]>::to_vec))
        };
        let lost = || misfit(step, "an expert's gradient is missing");
        let (y, dx_mine) = (next().ok_or_else(lost)?, next().ok_or_else(lost)?);
        for (i, &(t, _)) in mine.iter().enumerate() {
            let (at, from) = (t * width..(t + 1) * width, i * width..(i + 1) * width);
            let (y, back) = (&y[from.clone()], &dx_mine[from]);
            let dot = y.iter().zip(&dy[at.clone()]).map(|(y, d)| y * d);
            by_weight[t * count + e] = dot.sum();
            dx[at].iter_mut().zip(back).for_each(|(s, v)| *s += v);
        }
        for result in results {
            let values = result.and_then(|t| t.floats().map(<[f32]>::to_vec));
            let values = values.ok_or_else(lost)?;
            parameters.push(Some(Tensor::f32(&[values.len()], values)));
        }
    }
    let mut by_logit = vec![0f32; rows * count];
    for (t, picks) in chosen.iter().enumerate() {
        let along: f32 = picks
            .iter()
            .map(|(e, w)| w * by_weight[t * count + e])
            .sum();
        let row = &mut by_logit[t * count..(t + 1) * count];
        if !normalize {
            let mut p = scores[t * count..(t + 1) * count].to_vec();
            crate::exec::kernels::grad::softmax(
                crate::exec::kernels::vector::Isa::detect(),
                &mut p,
            );
            row.iter_mut().zip(&p).for_each(|(d, p)| *d = -p * along);
        }
        for (e, w) in picks {
            let held = if normalize { w * along } else { 0.0 };
            row[*e] += w * by_weight[t * count + e] - held;
        }
    }
    let front = [
        Some(Tensor::f32(&shape, dx)),
        Some(Tensor::f32(&logits_shape, by_logit)),
    ];
    Ok(front.into_iter().chain(parameters).collect())
}
