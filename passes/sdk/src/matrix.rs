//! A matrix pass behind the functions that the host calls.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;

use crate::export::{guard, instance};
use crate::host::{self, check, context};
use crate::ir::Rotation;
use crate::pass::borrow::{
    self, Traits, lend, no_traits, quantizer_in, rotation_in, rotation_out, slice, traits_in,
    traits_out,
};
use crate::pass::interface::{Earlier, MatrixPass, Pass, PassError, Peel, Peeled, Place, Stored};
use crate::pass::stated::Stated;
use crate::pass::terms::{TermData, TermSpec};
use crate::terms;

type Result<T, E = PassError> = std::result::Result<T, E>;

/// # Safety
/// As [`instance`].
unsafe fn matrix<'a>(pass: HlrcUser) -> Result<&'a dyn MatrixPass> {
    // SAFETY: the caller's promise.
    match unsafe { instance(pass) }? {
        Pass::Matrix(pass) => Ok(pass.as_ref()),
        Pass::Module(_) => Err(PassError::new("with these options it is a module pass")),
    }
}

pub(crate) unsafe extern "C" fn traits(
    pass: HlrcUser,
    context: HlrcContext,
    out: *mut HlrcMatrixTraits,
) -> HlrcStatus {
    guard(context, || {
        // SAFETY: the host gives a pass of `create` and room for the struct, by the interface; so it does
        // below.
        let traits = traits_out(unsafe { matrix(pass) }?);
        // SAFETY: as above.
        unsafe { borrow::fill(out, &traits) }?;
        Ok(HLRC_OK)
    })
}

pub(crate) unsafe extern "C" fn cost(
    pass: HlrcUser,
    context: HlrcContext,
    rows: u64,
    cols: u64,
    out: *mut HlrcCost,
) -> HlrcStatus {
    guard(context, || {
        // SAFETY: as in `traits`.
        let pass = unsafe { matrix(pass) }?;
        let cost = pass.cost(rows, cols)?;
        let cost = HlrcCost {
            size: size_of::<HlrcCost>(),
            workspace_bytes: cost.workspace_bytes,
            term_bytes: cost.term_bytes,
            nanos: cost.nanos,
        };
        // SAFETY: as in `traits`.
        unsafe { borrow::fill(out, &cost) }?;
        Ok(HLRC_OK)
    })
}

pub(crate) unsafe extern "C" fn peel(
    pass: HlrcUser,
    context: HlrcContext,
    given: *mut HlrcPeel,
) -> HlrcStatus {
    // SAFETY: as in `traits`; the struct has the fields of the first version.
    guard(context, || unsafe { run(matrix(pass)?, given) })
}

/// # Safety
/// `given` is a struct of the host, and what it points to lives during the call.
unsafe fn run(pass: &dyn MatrixPass, given: *mut HlrcPeel) -> Result<HlrcStatus> {
    let least = std::mem::offset_of!(HlrcPeel, term) + size_of::<HlrcTerm>();
    // SAFETY: the caller's promise, here and below; all fields may be zero.
    let about = unsafe { borrow::sized(given, least) }?;
    let (rows, cols) = (size(about.rows)?, size(about.cols)?);
    let entries = rows
        .checked_mul(cols)
        .ok_or_else(|| PassError::new("a matrix larger than memory"))?;
    let residual = unsafe { borrow::room(about.residual, entries, "residual") }?;
    let next = unsafe { about.next.as_ref() }
        .map(quantizer_in)
        .transpose()?;
    let moments = (!about.moments.is_null())
        .then(|| unsafe { host::moments_in(about.moments) })
        .transpose()?;
    let (mut passes, mut terms, mut before) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..about.earlier_count {
        let (traits, term) = earlier(index)?;
        before.push(term.clone().into_parts());
        passes.push(Stated::earlier(traits));
        terms.push(term);
    }
    let mut rotation: Option<Rotation> = rotation_in(&about.rotation);
    let mut remarks = Vec::new();
    let earlier = passes.iter().zip(&mut terms);
    let mut peel = Peel {
        site: unsafe { borrow::text(about.site) }?,
        rows,
        cols,
        residual,
        seed: about.seed,
        next,
        quantized_later: about.quantized_later != 0,
        moments: moments.as_ref(),
        rotation: &mut rotation,
        rotation_seed: about.rotation_seed,
        earlier: earlier.map(|(pass, term)| Earlier { pass, term }).collect(),
        remarks: &mut remarks,
    };
    let done = pass.peel(&mut peel);
    host::remarks(&remarks)?;
    let Peeled { term, note } = done?;
    let host = host::table()?;
    check(unsafe { (host.note)(context(), lend(&note)) })?;
    for (index, (term, before)) in terms.into_iter().zip(before).enumerate() {
        if !same(&term.clone().into_parts(), &before) {
            let term = send(term)?;
            check(unsafe { (host.earlier_set)(context(), index, term) })?;
        }
    }
    let term = term.map(send).transpose()?.unwrap_or(0);
    unsafe {
        (*given).rotation = rotation_out(rotation);
        (*given).term = term;
    }
    Ok(HLRC_OK)
}

fn size(n: u64) -> Result<usize> {
    usize::try_from(n).map_err(|_| PassError::new(format!("{n} is more than memory has")))
}

type Parts = (TermSpec, Vec<crate::pass::terms::TensorData>);

fn same(a: &Parts, b: &Parts) -> bool {
    let tensors = a.1.iter().zip(&b.1);
    a.0 == b.0 && a.1.len() == b.1.len() && tensors.into_iter().all(|(a, b)| a.pieces == b.pieces)
}

/// A term of an earlier pass, and what that pass is.
fn earlier(index: usize) -> Result<(Traits, TermData)> {
    let host = host::table()?;
    let mut found = HlrcEarlier {
        size: size_of::<HlrcEarlier>(),
        term: 0,
        traits: no_traits(),
    };
    // SAFETY: a function of the host, by the interface; the struct is ours.
    check(unsafe { (host.earlier)(context(), index, &mut found) })?;
    Ok((traits_in(&found.traits)?, terms::read(found.term)?))
}

/// Makes a term the host's.
fn send(term: TermData) -> Result<HlrcTerm> {
    let (rows, cols) = term.shape();
    let (spec, tensors) = term.into_parts();
    let (kind, attributes) = borrow::named(&spec)?;
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|t| (t.suffix, t.dtype, t.shape, one(t.pieces)))
        .collect();
    let views: Vec<HlrcTensor> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| HlrcTensor {
            name: lend(name),
            dtype: dtype.onnx_number() as u32,
            rank: shape.len() as u32,
            dims: shape.as_ptr(),
            data: bytes.as_ptr(),
            len: bytes.len(),
        })
        .collect();
    let (host, mut term) = (host::table()?, 0);
    // SAFETY: a function of the host, by the interface; all that is lent lives during the call.
    check(unsafe {
        (host.term_new)(
            context(),
            lend(&kind),
            lend(&attributes),
            rows as u64,
            cols as u64,
            views.as_ptr(),
            views.len(),
            &mut term,
        )
    })?;
    Ok(term)
}

fn one(mut pieces: Vec<Vec<u8>>) -> Vec<u8> {
    match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat(),
    }
}

pub(crate) unsafe extern "C" fn peel_stored(
    pass: HlrcUser,
    context: HlrcContext,
    stored: *const HlrcStored,
    out: *mut HlrcPeelStored,
) -> HlrcStatus {
    guard(context, || {
        let least = std::mem::offset_of!(HlrcStored, cols) + size_of::<u64>();
        // SAFETY: as in `traits`, here and below; all fields may be zero.
        let (pass, stored) = unsafe { (matrix(pass)?, borrow::sized(stored, least)?) };
        let bytes = unsafe { slice(stored.data, stored.len, "rows") }?;
        let (rows, cols) = (size(stored.rows)?, size(stored.cols)?);
        let stored = match stored.dtype {
            1 => Stored::F32 { bytes, rows, cols },
            10 => Stored::F16 { bytes, rows, cols },
            16 => Stored::Bf16 { bytes, rows, cols },
            _ => return Ok(HLRC_NONE),
        };
        // The struct has neither; remarks about stored rows are the context's, which knows the site.
        let place = Place {
            site: "",
            seed: host::seed()?,
        };
        let Some(peeled) = pass.peel_stored(stored, place) else {
            return Ok(HLRC_NONE);
        };
        let peeled = peeled?;
        let made = HlrcPeelStored {
            size: size_of::<HlrcPeelStored>(),
            term: send(peeled.term)?,
            weight_squares: peeled.weight_squares,
            residual_squares: peeled.residual_squares,
        };
        unsafe { borrow::fill(out, &made) }?;
        Ok(HLRC_OK)
    })
}
