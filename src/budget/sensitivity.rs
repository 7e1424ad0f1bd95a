//! What the errors of each group do to the model.

use super::Group;
use crate::eval::inputs::token_inputs;
use crate::eval::outputs::compare;
use crate::eval::window::Window;
use crate::eval::{Causal, EvalError, Predictor, Windows, measure};
use crate::exec::{Engine, ExecError, Options, Pool};
use crate::ir::site::sites;
use crate::ir::{Module, OpRef, Term};
use crate::weights::FileCache;
use std::borrow::Cow;

/// Why groups can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The model can't be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The evaluation failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The coded module is not one of this model.
    #[error("the coded model has no {0}: it is of another model")]
    Missing(String),
}

/// KL divergence, nats per token, of the original with one group at a time taken from the coded module;
/// of a model that predicts no tokens, the squared relative error of its outputs on each window.
///
/// As many models run side by side over the windows as have room for their KV caches in `memory` bytes; the
/// original runs again beside each lot. Results do not depend on it. Memory: the caches of one window, which
/// take no less than two models' need.
///
/// # Errors
/// A model can't be run, or does not fit the other.
pub fn sensitivities(
    original: &Module,
    coded: &Module,
    groups: &[Group],
    windows: &[Vec<u32>],
    options: &Options,
    memory: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, BudgetError> {
    let files = FileCache::new();
    let reference = Engine::new(original, &files, options)?;
    let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
    let each = reference.cache_bytes(longest).max(1);
    let beside = (memory / each).saturating_sub(1).max(1);
    let beside = usize::try_from(beside).unwrap_or(usize::MAX);
    let mut found = Vec::with_capacity(groups.len());
    for lot in groups.chunks(beside) {
        let mut engines = Vec::with_capacity(lot.len());
        for group in lot {
            let module = with_group(original, coded, group)?;
            engines.push(Engine::new(&module, &files, options)?);
        }
        found.extend(match reference.language_model() {
            Err(_) => outputs(&reference, &engines, lot, windows, progress)?,
            Ok(_) => divergences(&reference, &engines, lot, windows, options, progress)?,
        });
    }
    Ok(found)
}

/// Mean KL divergence of each engine's predictions.
fn divergences(
    reference: &Engine,
    engines: &[Engine],
    groups: &[Group],
    windows: &[Vec<u32>],
    options: &Options,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, BudgetError> {
    let mut reference = Causal::new(reference, "the original")?;
    let mut models = Vec::with_capacity(engines.len());
    for (engine, group) in engines.iter().zip(groups) {
        models.push(Causal::new(engine, &group.label())?);
    }
    let mut candidates: Vec<&mut dyn Predictor> =
        models.iter_mut().map(|m| m as &mut dyn Predictor).collect();
    let list = windows.iter().map(|tokens| Window {
        tokens: tokens.clone(),
        first: 1,
    });
    let windows = Windows {
        list: list.collect(),
        ..Windows::default()
    };
    let pool = Pool::new(options.threads);
    let tally = measure(
        Some(&mut reference),
        &mut candidates,
        &windows,
        &pool,
        progress,
    )?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    Ok(tally
        .candidates
        .iter()
        .map(|c| mean(&c.divergence))
        .collect())
}

/// Mean over the outputs of the squared mean relative error.
fn outputs(
    reference: &Engine,
    engines: &[Engine],
    groups: &[Group],
    windows: &[Vec<u32>],
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f64>, BudgetError> {
    let name = "the original";
    let inputs = |engine: &Engine, at: usize| {
        let tokens = windows.get(at).map_or(&[][..], Vec::as_slice);
        token_inputs(engine, name, tokens).map(Cow::Owned)
    };
    let mut found = Vec::with_capacity(groups.len());
    for (at, (engine, group)) in engines.iter().zip(groups).enumerate() {
        let label = group.label();
        let (a, b) = ((reference, name), (engine, label.as_str()));
        let reports = compare(a, b, windows.len(), &inputs, false, &mut |_| {})?;
        let squares = reports.iter().map(|r| r.relative_error_mean.powi(2));
        found.push(squares.sum::<f64>() / reports.len().max(1) as f64);
        progress(at + 1);
    }
    Ok(found)
}

/// The original with the matrices of a group as the coded module has them.
fn with_group(original: &Module, coded: &Module, group: &Group) -> Result<Module, BudgetError> {
    let mut module = original.clone();
    let (ours, theirs) = (sites(original), sites(coded));
    for name in &group.sites {
        let missing = || BudgetError::Missing(name.clone());
        let to = ours.iter().find(|s| s.name == *name).ok_or_else(missing)?;
        let from = theirs
            .iter()
            .find(|s| s.name == *name)
            .ok_or_else(missing)?;
        let matrix = from.matrix(coded).ok_or_else(missing)?;
        let mut terms: Vec<Term> = matrix.terms.clone();
        for term in &mut terms {
            term.for_each_weight(|id| {
                if let Some(weight) = coded.weight(*id) {
                    let mut weight = weight.clone();
                    weight.name = format!("coded:{}", weight.name);
                    module.weights.push(weight);
                    *id = crate::ir::WeightId::new(module.weights.len() - 1);
                }
            });
        }
        let users: &[OpRef] = &to.users;
        for at in users {
            if let Some(matrix) = module.op_mut(*at).and_then(|op| op.kind.matrix_mut()) {
                matrix.terms.clone_from(&terms);
            }
        }
    }
    Ok(module)
}
