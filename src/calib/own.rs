//! Text that a model writes itself, for those who have none.

use std::ops::ControlFlow;

use super::error::{CalibError, Result};
use super::metadata::Protocol;
use super::windows::Windows;
use crate::exec::{Engine, Rows};
use crate::text::{Sampler, Sampling};
use crate::weights::Digest;

/// Windows that are written at once.
const AT_ONCE: usize = 16;

/// Windows of tokens that the model samples from itself at temperature 1.
///
/// Each begins with the BOS token, or without one with any token, and has a seed of its own, so that
/// the same protocol gives the same windows. What ends a text ends no window: the model goes on with
/// another text. `tell` gets the tokens written so far.
///
/// # Errors
/// The model is no language model, fails, or gives logits that are no numbers.
pub fn write(
    engine: &Engine,
    model: &str,
    protocol: &Protocol,
    tell: &mut dyn FnMut(usize),
) -> Result<Windows> {
    let vocabulary = engine
        .language_model()
        .map_err(CalibError::exec(model))?
        .vocabulary;
    if protocol.context == 0 || protocol.windows == 0 || vocabulary == 0 {
        return Err(CalibError::Protocol(
            "windows without tokens hold no text".to_string(),
        ));
    }
    let numbers: Vec<u64> = (0..protocol.windows as u64).collect();
    let mut windows = Windows::default();
    for part in numbers.chunks(AT_ONCE) {
        let mut writers = Vec::with_capacity(part.len());
        for &number in part {
            writers.push(Author::new(protocol, number, vocabulary)?);
        }
        let mut state = engine.state(writers.len());
        for _ in 1..protocol.context {
            let last: Vec<u32> = writers
                .iter()
                .filter_map(|w| w.tokens.last().copied())
                .collect();
            let mut failed = None;
            let mut each = |first: usize, logits: &[f32]| {
                let rows = logits.chunks(vocabulary);
                for (author, row) in writers.iter_mut().skip(first).zip(rows) {
                    if let Err(error) = author.go_on(row) {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            };
            let ran = engine.forward(&mut state, &last, Rows::Last, &mut each);
            ran.map_err(CalibError::exec(model))?;
            failed.map_or(Ok(()), Err)?;
            let written = windows.list.len() * protocol.context;
            tell(written + writers.iter().map(|w| w.tokens.len()).sum::<usize>());
        }
        windows.list.extend(writers.into_iter().map(|w| w.tokens));
    }
    windows.of_text = vec![windows.list.len()];
    Ok(windows)
}

struct Author {
    sampler: Sampler,
    tokens: Vec<u32>,
}

impl Author {
    fn new(protocol: &Protocol, number: u64, vocabulary: usize) -> Result<Self> {
        let digest = Digest::of(&[protocol.seed.to_le_bytes(), number.to_le_bytes()].concat());
        let (seeds, _) = digest.0.as_chunks::<8>();
        let seed = |at: usize| seeds.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let any = u32::try_from(seed(0) % vocabulary as u64).unwrap_or(0);
        let sampling = Sampling {
            temperature: 1.0,
            seed: seed(1),
            ..Sampling::default()
        };
        Ok(Self {
            sampler: Sampler::new(sampling).map_err(|e| CalibError::Protocol(e.to_string()))?,
            tokens: vec![protocol.bos.unwrap_or(any)],
        })
    }

    fn go_on(&mut self, logits: &[f32]) -> Result<()> {
        let next = self.sampler.pick(logits, &self.tokens);
        let next = next.map_err(|e| CalibError::Protocol(e.to_string()))?;
        self.tokens.push(next);
        Ok(())
    }
}
