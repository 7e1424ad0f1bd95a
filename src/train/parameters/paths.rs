//! Codes of trellises that move: a dense copy, of which the nearest paths are stored.

use std::collections::HashMap;

use bytes::Bytes;
use half::f16;

use crate::ir::{Matrix, Module, TrellisTerm, WeightId};
use crate::numeric::trellis::{Encoder, TILE, TrellisError, TrellisMatrix, quantize_stripe};
use crate::store::{Reader, StoreError};
use crate::train::TrainError;

/// Places where tiles are cut to find cyclic paths; more take three times as long for half a percent.
const SEAMS: u8 = 1;

/// Codes of a trellis, and the scales that they go by.
#[derive(Clone, Debug, PartialEq)]
pub struct Paths {
    /// The weight of the codes.
    pub name: String,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Log2 of the number of states.
    pub states_log2: u8,
    /// Bits per weight of each block of 16 columns.
    pub bits: Vec<u8>,
    /// Weight of the scales, one for 16 rows, and what they are at the start.
    pub scales: (String, Bytes),
}

impl Paths {
    /// Those of a term.
    ///
    /// # Errors
    /// Its parts cannot be read or do not fit together.
    pub(super) fn new(
        module: &Module,
        reader: &Reader<'_>,
        matrix: &Matrix,
        term: &TrellisTerm,
    ) -> Result<Self, TrainError> {
        let named = |id: WeightId| module.weight(id).map_or(String::new(), |w| w.name.clone());
        let shape = (matrix.out_features as usize, matrix.in_features as usize);
        let (bits, scales) = (reader.bytes(module, term.bits)?.to_vec(), term.scales);
        let scale_bytes = Bytes::from(reader.bytes(module, scales)?);
        let codes = shape.0.div_ceil(TILE) * TrellisMatrix::stripe_bytes(&bits);
        let lengths = (codes, scale_bytes.len() / 2);
        TrellisMatrix::check_parts(shape, term.states, &bits, lengths.0, lengths.1).map_err(
            |e: TrellisError| StoreError::Damaged {
                weight: named(term.codes),
                problem: e.to_string(),
            },
        )?;
        Ok(Self {
            name: named(term.codes),
            shape,
            states_log2: term.states,
            bits,
            scales: (named(scales), scale_bytes),
        })
    }

    /// The codes nearest to `values`, `[rows, cols]` in the term's coordinates; `now` has the scales
    /// where they move.
    ///
    /// # Errors
    /// Says what is unsupported.
    ///
    /// # Cost
    /// That of [`crate::numeric::trellis::quantize`] without feedback, spread over the threads.
    pub(super) fn nearest(
        &self,
        values: &[f32],
        now: &HashMap<String, Bytes>,
        threads: usize,
    ) -> Result<(String, Bytes), String> {
        let (rows, cols) = self.shape;
        if values.len() != rows * cols {
            return Err(format!("{}: {} values", self.name, values.len()));
        }
        let scales = now.get(&self.scales.0).unwrap_or(&self.scales.1);
        let scales = scales.chunks_exact(2).map(|b| [b[0], b[1]]);
        let scales: Vec<f16> = scales.map(f16::from_le_bytes).collect();
        let bytes = TrellisMatrix::stripe_bytes(&self.bits);
        let mut codes = vec![0u8; scales.len() * bytes];
        // Stripes have nothing to do with each other: who codes them makes no difference.
        let each = scales.len().div_ceil(threads.max(1)).max(1);
        let code = |values: &[f32], scales: &[f16], codes: &mut [u8]| -> Result<(), String> {
            let encoder = Encoder::new(self.states_log2);
            let mut encoder = encoder.map_err(|e| format!("{}: {e}", self.name))?;
            let stripes = values.chunks((TILE * cols).max(1)).zip(scales);
            for ((stripe, &scale), out) in stripes.zip(codes.chunks_exact_mut(bytes.max(1))) {
                let made = quantize_stripe(&mut encoder, stripe, cols, &self.bits, scale, SEAMS);
                out.copy_from_slice(&made);
            }
            Ok(())
        };
        let made: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let parts = values
                .chunks((each * TILE * cols).max(1))
                .zip(scales.chunks(each))
                .zip(codes.chunks_mut((each * bytes).max(1)));
            let workers: Vec<_> = parts
                .map(|((values, scales), codes)| scope.spawn(move || code(values, scales, codes)))
                .collect();
            let died = || Err(format!("{}: coding it failed", self.name));
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| died()))
                .collect()
        });
        made.into_iter().collect::<Result<(), String>>()?;
        Ok((self.name.clone(), codes.into()))
    }
}
