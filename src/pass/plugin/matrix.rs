//! A plugin's matrix pass as the manager sees it.
#![allow(unsafe_code)]

use std::ops::Range;

use hlrc_pass_abi::*;

use super::borrow::{
    self, moments_out, no_traits, quantizer_out, rotation_in, rotation_out, traits_in,
};
use super::context::{Context, Inside};
use super::library::Def;
use super::scene::{EarlierTerms, Scene};
use super::seed;
use super::stated::{Stated, Work, usual_cost};
use crate::pass::interface::{self, Cost, PassError, Peel, Peeled, PeeledStored, Place};
use crate::pass::terms::TermData;

/// A pass that a plugin made, and the plugin's own pointer to it.
pub(super) struct Made {
    pub(super) def: &'static Def,
    pass: HlrcUser,
}

// SAFETY: the interface says that passes may be called from any thread, and from several at once.
unsafe impl Send for Made {}
// SAFETY: as above.
unsafe impl Sync for Made {}

impl Made {
    pub(super) fn new(def: &'static Def, options: &str) -> Result<Self, PassError> {
        let create = def
            .raw
            .create
            .ok_or_else(|| def.error("it has no `create`"))?;
        let context = Context::open("", seed(), Scene::Plain);
        let mut pass: HlrcUser = std::ptr::null_mut();
        // SAFETY: the function is the plugin's, by the interface; all pointers live during the call.
        let status = unsafe { create(def.own, context.number, borrow::lend(options), &mut pass) };
        context.close(status).map_err(|e| def.refusal(&e))?;
        Ok(Self { def, pass })
    }

    pub(super) fn pass(&self) -> HlrcUser {
        self.pass
    }

    /// What the pass says of itself; none where it has no `traits`.
    pub(super) fn traits(&self) -> Result<Option<HlrcMatrixTraits>, PassError> {
        let Some(ask) = self.def.raw.traits else {
            return Ok(None);
        };
        let mut traits = no_traits();
        let context = Context::open("", seed(), Scene::Plain);
        // SAFETY: as in `new`.
        let status = unsafe { ask(self.pass, context.number, &mut traits) };
        context.close(status).map_err(|e| self.def.refusal(&e))?;
        Ok(Some(traits))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(destroy) = self.def.raw.destroy {
            let _inside = Inside::begin();
            // SAFETY: `create` made the pass and nothing uses it any more.
            unsafe { destroy(self.pass) }
        }
    }
}

/// A plugin's matrix pass.
pub(super) struct ForeignMatrix {
    made: Made,
}

impl ForeignMatrix {
    pub(super) fn stated(made: Made) -> Result<Stated<Self>, PassError> {
        let def = made.def;
        let traits = made.traits()?;
        let traits = traits.ok_or_else(|| def.error("it has no `traits`"))?;
        Ok(Stated {
            traits: traits_in(&traits).map_err(|e| def.refusal(&e))?,
            work: Self { made },
        })
    }

    fn refused(&self, error: &PassError) -> PassError {
        self.made.def.refusal(error)
    }
}

impl Work for ForeignMatrix {
    fn cost(&self, rows: u64, cols: u64) -> Result<Cost, PassError> {
        let usual = usual_cost(rows, cols);
        let def = self.made.def;
        let Some(ask) = def.raw.cost else {
            return Ok(usual);
        };
        let mut cost = HlrcCost {
            size: size_of::<HlrcCost>(),
            workspace_bytes: usual.workspace_bytes,
            term_bytes: usual.term_bytes,
            nanos: usual.nanos,
        };
        let context = Context::open("", seed(), Scene::Plain);
        // SAFETY: as in `Made::new`.
        let status = unsafe { ask(self.made.pass(), context.number, rows, cols, &mut cost) };
        let asked = |e: &dyn std::fmt::Display| {
            def.error(&format!("the cost of a matrix of {rows}x{cols}: {e}"))
        };
        if !context.close(status).map_err(|e| asked(&e))? {
            return Ok(usual);
        }
        if !cost.nanos.is_finite() || cost.nanos < 0.0 {
            return Err(asked(&format!("{} nanoseconds", cost.nanos)));
        }
        Ok(Cost {
            workspace_bytes: cost.workspace_bytes,
            term_bytes: cost.term_bytes,
            nanos: cost.nanos,
        })
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let def = self.made.def;
        let call = def.raw.peel.ok_or_else(|| def.error("it has no `peel`"))?;
        let sample = Sample::of(peel);
        // SAFETY: `peel` is borrowed by this call, which closes the context before it returns.
        let earlier = unsafe { EarlierTerms::new(&mut peel.earlier) };
        let context = Context::open(peel.site, peel.seed, Scene::Peel(earlier));
        let next = peel.next.as_ref().map(quantizer_out);
        let moments = peel.moments.map(moments_out);
        let before = *peel.rotation;
        let mut given = HlrcPeel {
            size: size_of::<HlrcPeel>(),
            site: borrow::lend(peel.site),
            rows: peel.rows as u64,
            cols: peel.cols as u64,
            residual: peel.residual.as_mut_ptr(),
            seed: peel.seed,
            rotation_seed: peel.rotation_seed,
            next: next.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            moments: moments
                .as_ref()
                .map_or(std::ptr::null(), std::ptr::from_ref),
            earlier_count: peel.earlier.len(),
            quantized_later: u32::from(peel.quantized_later),
            reserved: 0,
            rotation: rotation_out(before),
            term: 0,
        };
        // SAFETY: the function is the plugin's, by the interface; all pointers live during the call, and
        // nobody else has the residual.
        let status = unsafe { call(self.made.pass(), context.number, &mut given) };
        context.close(status).map_err(|e| self.refused(&e))?;
        let rotation = rotation_in(&given.rotation);
        if rotation.is_some_and(|r| !r.fits(peel.rows as u64, peel.cols as u64)) {
            let HlrcRotation {
                out_block,
                in_block,
                ..
            } = given.rotation;
            return Err(def.error(&format!(
                "it says that it rotated {}x{} in blocks of {out_block} and {in_block}: blocks are powers of \
                 two that divide the sides",
                peel.rows, peel.cols
            )));
        }
        *peel.rotation = rotation;
        let mut state = context.state();
        peel.remarks.append(&mut state.remarks);
        let term = match given.term {
            0 => None,
            handle => Some(state.take_term(handle).map_err(|e| self.refused(&e))?),
        };
        if term
            .as_ref()
            .is_some_and(|t| t.shape() != (peel.rows, peel.cols))
        {
            let (rows, cols) = (peel.rows, peel.cols);
            let text = format!("its term is not one of the {rows}x{cols} that it was given");
            return Err(def.error(&text));
        }
        let changed =
            matches!(&state.scene, Scene::Peel(e) if e.changed()) || before != *peel.rotation;
        if !changed && before.is_none() {
            sample
                .check(peel, term.as_ref())
                .map_err(|e| self.refused(&e))?;
        }
        let note = match (std::mem::take(&mut state.note), &term) {
            (note, Some(term)) if note.is_empty() => term.label(),
            (note, _) => note,
        };
        Ok(Peeled { term, note })
    }

    fn peel_stored(
        &self,
        stored: interface::Stored<'_>,
        place: Place<'_>,
    ) -> Option<Result<PeeledStored, PassError>> {
        use interface::Stored;
        let call = self.made.def.raw.peel_stored?;
        let (dtype, bytes, rows, cols) = match stored {
            Stored::F32 { bytes, rows, cols } => (1, bytes, rows, cols),
            Stored::F16 { bytes, rows, cols } => (10, bytes, rows, cols),
            Stored::Bf16 { bytes, rows, cols } => (16, bytes, rows, cols),
        };
        let given = HlrcStored {
            size: size_of::<HlrcStored>(),
            dtype,
            reserved: 0,
            data: bytes.as_ptr(),
            len: bytes.len(),
            rows: rows as u64,
            cols: cols as u64,
        };
        let mut out = HlrcPeelStored {
            size: size_of::<HlrcPeelStored>(),
            term: 0,
            weight_squares: 0.0,
            residual_squares: 0.0,
        };
        let context = Context::open(place.site, place.seed, Scene::Plain);
        // SAFETY: as in `peel`.
        let status = unsafe { call(self.made.pass(), context.number, &given, &mut out) };
        match context.close(status) {
            Ok(false) => return None,
            Ok(true) => {}
            Err(error) => return Some(Err(self.refused(&error))),
        }
        let state = &mut context.state();
        let term = state.take_term(out.term).ok();
        let fits = |t: &TermData| t.shape() == (rows, cols);
        Some(match term.filter(fits) {
            Some(term) => Ok(PeeledStored {
                term,
                weight_squares: out.weight_squares,
                residual_squares: out.residual_squares,
            }),
            None => Err(self
                .made
                .def
                .error("`peel_stored` gave no term of the rows that it got")),
        })
    }
}

/// Some rows as they were before a peel: a pass must leave what it was given minus its term, or the errors
/// that are reported would not be true.
struct Sample {
    rows: Vec<(usize, Vec<f32>)>,
}

/// Largest difference that rounding may make, relative to the row's largest entry.
const TOLERANCE: f32 = 1e-3;

impl Sample {
    fn of(peel: &Peel<'_>) -> Self {
        let count = peel.rows.max(1) as u64;
        let picked = [peel.seed % count, (peel.seed >> 32) % count];
        let take = |row: u64| {
            let row = row as usize;
            let values: Range<usize> = row * peel.cols..(row + 1) * peel.cols;
            Some((row, peel.residual.get(values)?.to_vec()))
        };
        Self {
            rows: picked.into_iter().filter_map(take).collect(),
        }
    }

    fn check(&self, peel: &Peel<'_>, term: Option<&TermData>) -> Result<(), PassError> {
        for (row, before) in &self.rows {
            let mut left = before.clone();
            let mut decoded = vec![0f32; peel.cols];
            if let Some(term) = term {
                term.add_rows(*row..row + 1, &mut decoded)?;
            }
            left.iter_mut().zip(&decoded).for_each(|(l, d)| *l -= d);
            let after = peel.residual.get(row * peel.cols..(row + 1) * peel.cols);
            let scale = before
                .iter()
                .chain(&decoded)
                .fold(0f32, |m, x| m.max(x.abs()));
            let bad = |(a, l): (&f32, &f32)| (a - l).abs() > TOLERANCE * scale || a.is_nan();
            let at = after.unwrap_or(&[]).iter().zip(&left).position(bad);
            if let Some(col) = at {
                let has = after.and_then(|a| a.get(col)).copied().unwrap_or(f32::NAN);
                let (was, taken) = (before[col], decoded[col]);
                return Err(PassError::new(format!(
                    "the residual that it left is not the matrix minus its term: [{row}, {col}] was {was}, \
                     the term has {taken}, left is {has}"
                )));
            }
        }
        Ok(())
    }
}
