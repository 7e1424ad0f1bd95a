//! What crosses the border, turned into Rust's types and back, with the checks that C does not make.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;

use crate::ir::Rotation;
use crate::numeric::{Group, ScaleMethod, Scheme};
use crate::pass::terms::{TensorData, TermSpec};
use crate::pass::{Access, Calibration, Moments, PassError, Quantizer, Residual};
use crate::weights::DType;

/// Text of the host for a plugin; lives as long as `text`.
pub(crate) fn lend(text: &str) -> HlrcStr {
    HlrcStr {
        data: text.as_ptr(),
        len: text.len(),
    }
}

/// Text of a plugin.
///
/// # Safety
/// `text.data` points to `text.len` bytes that live as long as `'a`, or is null.
///
/// # Errors
/// It is null but not empty, or no UTF-8.
pub(crate) unsafe fn text<'a>(text: HlrcStr) -> Result<&'a str, PassError> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { slice(text.data, text.len, "text") }?;
    std::str::from_utf8(bytes).map_err(|e| PassError::new(format!("text that is no UTF-8: {e}")))
}

/// Elements of a plugin.
///
/// # Safety
/// `data` points to `len` elements that live as long as `'a`, or is null or out of alignment.
///
/// # Errors
/// It is null but not empty, out of alignment, or larger than memory.
pub(crate) unsafe fn slice<'a, T>(
    data: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], PassError> {
    if len == 0 {
        return Ok(&[]);
    }
    check(data, len, what)?;
    // SAFETY: not null, aligned, of an addressable size; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// Room that a plugin gives for elements.
///
/// # Safety
/// `data` points to `len` elements that nobody else uses as long as `'a`, or is null or out of alignment.
///
/// # Errors
/// As [`slice`].
pub(crate) unsafe fn room<'a, T>(
    data: *mut T,
    len: usize,
    what: &str,
) -> Result<&'a mut [T], PassError> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(data, len, what)?;
    // SAFETY: not null, aligned, of an addressable size; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(data, len) })
}

fn check<T>(data: *const T, len: usize, what: &str) -> Result<(), PassError> {
    if data.is_null() {
        return Err(PassError::new(format!(
            "{what}: a null pointer to {len} elements"
        )));
    }
    if !data.is_aligned() {
        return Err(PassError::new(format!(
            "{what}: a pointer that is not aligned"
        )));
    }
    let bytes = len.checked_mul(size_of::<T>().max(1));
    if bytes.is_none_or(|n| isize::try_from(n).is_err()) {
        return Err(PassError::new(format!(
            "{what}: {len} elements are more than memory has"
        )));
    }
    Ok(())
}

/// A struct that begins with its size, as far as its filler knows it; what it does not know is zero. No
/// reference to the filler's is made: it may be shorter than a `T`.
///
/// # Safety
/// `data` is null, or points to a `usize` and as many bytes as that says. A prefix of a valid `T` of `least`
/// bytes or more, whole fields, with zeros behind it is one too.
pub(crate) unsafe fn sized<T: Copy>(data: *const T, least: usize) -> Result<T, PassError> {
    if data.is_null() || !data.is_aligned() {
        return Err(PassError::new(
            "a struct where the pointer is null or not aligned",
        ));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { data.cast::<usize>().read() };
    if size < least {
        return Err(PassError::new(format!(
            "a struct of {size} bytes where it has at least {least}"
        )));
    }
    let mut copy = std::mem::MaybeUninit::<T>::zeroed();
    // No field is cut in two: no compiler makes a struct whose size is between two multiples.
    let len = size.min(size_of::<T>()) / align_of::<T>() * align_of::<T>();
    // SAFETY: `size` bytes may be read and `size_of::<T>` written; all bytes are initialised, and the
    // caller promises that they are a `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(data.cast::<u8>(), copy.as_mut_ptr().cast::<u8>(), len);
        Ok(copy.assume_init())
    }
}

/// Fills a struct that begins with its size, as far as its owner knows it; its `size` stays.
///
/// # Safety
/// `out` is null, or points to a `usize` and as many bytes as that says, which may be written.
pub(crate) unsafe fn fill<T: Copy>(out: *mut T, value: &T) -> Result<(), PassError> {
    place(out)?;
    let skip = size_of::<usize>();
    // SAFETY: the caller's promise.
    let size = unsafe { out.cast::<usize>().read() };
    if size < skip {
        return Err(PassError::new("`size` of the struct is not set"));
    }
    let len = size.min(size_of::<T>()) - skip;
    let from = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: both have `skip + len` bytes.
    unsafe { std::ptr::copy_nonoverlapping(from.add(skip), out.cast::<u8>().add(skip), len) };
    Ok(())
}

/// Whether a result can go there: what would be done for it is not done else.
///
/// # Errors
/// The pointer is null, or out of alignment.
pub(crate) fn place<T>(out: *const T) -> Result<(), PassError> {
    if out.is_null() || !out.is_aligned() {
        return Err(PassError::new(
            "a null pointer where the result goes, or one that is not aligned",
        ));
    }
    Ok(())
}

/// Writes a result.
///
/// # Safety
/// `out` is null, or may be written.
pub(crate) unsafe fn put<T>(out: *mut T, value: T) -> Result<(), PassError> {
    place(out)?;
    // SAFETY: the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

/// A tensor of a plugin, copied. Its size must be what type and dimensions ask for.
///
/// # Safety
/// What it points to lives and may be read.
pub(crate) unsafe fn tensor(tensor: &HlrcTensor) -> Result<TensorData, PassError> {
    // SAFETY: the caller's promise, for all three.
    let (name, dims, data) = unsafe {
        (
            text(tensor.name)?,
            slice(tensor.dims, tensor.rank as usize, "dims")?,
            slice(tensor.data, tensor.len, "data")?,
        )
    };
    let number = i32::try_from(tensor.dtype).unwrap_or(0);
    let unknown = || PassError::new(format!("tensor `{name}`: {number} is no element type"));
    let dtype = DType::from_onnx(number).ok_or_else(unknown)?;
    let need = dtype.bytes_for_shape(dims);
    if need != Some(data.len() as u64) {
        let have = data.len();
        let need = need.map_or("too many".to_string(), |n| n.to_string());
        return Err(PassError::new(format!(
            "tensor `{name}`: {dtype}{dims:?} takes {need} bytes, {have} are given"
        )));
    }
    Ok(TensorData {
        suffix: name.to_string().into(),
        dtype,
        shape: dims.to_vec(),
        pieces: vec![data.to_vec()],
    })
}

pub(crate) fn quantizer_out(q: &Quantizer) -> HlrcQuantizer {
    HlrcQuantizer {
        bits: u32::from(q.scheme.bits),
        symmetric: u32::from(q.scheme.symmetric),
        group: match q.group {
            Group::Row => HLRC_GROUP_ROW,
            Group::Column => HLRC_GROUP_COLUMN,
            Group::Size(size) => size,
        },
        method: match q.method {
            ScaleMethod::AbsMax => HLRC_SCALE_ABSMAX,
            ScaleMethod::Lsq => HLRC_SCALE_LSQ,
        },
        feedback: u32::from(q.feedback),
    }
}

pub(crate) fn quantizer_in(q: &HlrcQuantizer) -> Result<Quantizer, PassError> {
    let bits = u8::try_from(q.bits)
        .ok()
        .filter(|b| [2, 3, 4, 8].contains(b));
    let bits = bits.ok_or_else(|| PassError::new(format!("a quantizer of {} bits", q.bits)))?;
    Ok(Quantizer {
        scheme: Scheme {
            bits,
            symmetric: q.symmetric != 0,
        },
        group: match q.group {
            HLRC_GROUP_ROW => Group::Row,
            HLRC_GROUP_COLUMN => Group::Column,
            size => Group::Size(size),
        },
        method: match q.method {
            HLRC_SCALE_ABSMAX => ScaleMethod::AbsMax,
            HLRC_SCALE_LSQ => ScaleMethod::Lsq,
            other => return Err(PassError::new(format!("a scale method of number {other}"))),
        },
        feedback: q.feedback != 0,
    })
}

pub(crate) fn rotation_out(rotation: Option<Rotation>) -> HlrcRotation {
    rotation.map_or(HlrcRotation::default(), |r| HlrcRotation {
        out_block: r.out_block,
        in_block: r.in_block,
        seed: r.seed,
    })
}

pub(crate) fn rotation_in(r: &HlrcRotation) -> Option<Rotation> {
    (r.out_block != 0).then_some(Rotation {
        out_block: r.out_block,
        in_block: r.in_block,
        seed: r.seed,
    })
}

/// Moments of the host for a plugin; they live as long as `m`.
pub(crate) fn moments_out(m: &Moments) -> HlrcMoments {
    HlrcMoments {
        size: size_of::<HlrcMoments>(),
        tokens: m.tokens,
        width: m.diagonal.len() as u64,
        diagonal: m.diagonal.as_ptr(),
        hessian: m.hessian.as_ref().map_or(std::ptr::null(), |h| h.as_ptr()),
    }
}

/// What the manager asks of a matrix pass, once it is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traits {
    pub(crate) access: Access,
    pub(crate) residual: Residual,
    pub(crate) calibration: Calibration,
    pub(crate) quantizes: bool,
    pub(crate) quantizer: Option<Quantizer>,
}

pub(crate) fn calibration_in(number: u32) -> Result<Calibration, PassError> {
    match number {
        HLRC_CALIBRATION_UNUSED => Ok(Calibration::Unused),
        HLRC_CALIBRATION_USED => Ok(Calibration::Used),
        HLRC_CALIBRATION_NEEDED => Ok(Calibration::Needed),
        other => Err(PassError::new(format!("a calibration of number {other}"))),
    }
}

pub(crate) fn calibration_out(calibration: Calibration) -> u32 {
    match calibration {
        Calibration::Unused => HLRC_CALIBRATION_UNUSED,
        Calibration::Used => HLRC_CALIBRATION_USED,
        Calibration::Needed => HLRC_CALIBRATION_NEEDED,
    }
}

/// Traits to be filled in: what one has that states nothing.
pub(crate) fn no_traits() -> HlrcMatrixTraits {
    HlrcMatrixTraits {
        size: size_of::<HlrcMatrixTraits>(),
        access: HLRC_ACCESS_WHOLE,
        residual: HLRC_RESIDUAL_DROP,
        calibration: HLRC_CALIBRATION_UNUSED,
        quantizes: 0,
        has_quantizer: 0,
        quantizer: HlrcQuantizer::default(),
    }
}

pub(crate) fn traits_in(t: &HlrcMatrixTraits) -> Result<Traits, PassError> {
    let no = |what: &str, number: u32| Err(PassError::new(format!("{what} of number {number}")));
    Ok(Traits {
        access: match t.access {
            HLRC_ACCESS_ROWS => Access::Rows,
            HLRC_ACCESS_WHOLE => Access::Whole,
            other => return no("an access", other),
        },
        residual: match t.residual {
            HLRC_RESIDUAL_DROP => Residual::Drop,
            HLRC_RESIDUAL_DROP_NOW => Residual::DropNow,
            HLRC_RESIDUAL_KEEP => Residual::Keep,
            other => return no("a residual", other),
        },
        calibration: calibration_in(t.calibration)?,
        quantizes: t.quantizes != 0 || t.has_quantizer != 0,
        quantizer: match t.has_quantizer {
            0 => None,
            _ => Some(quantizer_in(&t.quantizer)?),
        },
    })
}

pub(crate) fn traits_out(pass: &dyn crate::pass::MatrixPass) -> HlrcMatrixTraits {
    let quantizer = pass.quantizer();
    HlrcMatrixTraits {
        size: size_of::<HlrcMatrixTraits>(),
        access: match pass.access() {
            Access::Rows => HLRC_ACCESS_ROWS,
            Access::Whole => HLRC_ACCESS_WHOLE,
        },
        residual: match pass.residual() {
            Residual::Drop => HLRC_RESIDUAL_DROP,
            Residual::DropNow => HLRC_RESIDUAL_DROP_NOW,
            Residual::Keep => HLRC_RESIDUAL_KEEP,
        },
        calibration: calibration_out(pass.calibration()),
        quantizes: u32::from(pass.quantizes()),
        has_quantizer: u32::from(quantizer.is_some()),
        quantizer: quantizer.as_ref().map(quantizer_out).unwrap_or_default(),
    }
}

/// A term's kind and constants as C has them: the journal's words, the kind apart.
pub(crate) fn named(spec: &TermSpec) -> Result<(String, String), PassError> {
    if let TermSpec::Custom { name, attrs, .. } = spec {
        let attrs = serde_json::to_string(attrs).map_err(PassError::new)?;
        return Ok((name.clone(), attrs));
    }
    let value = serde_json::to_value(spec).map_err(PassError::new)?;
    let mut fields = value.as_object().cloned().unwrap_or_default();
    let kind = fields
        .remove("kind")
        .and_then(|k| k.as_str().map(str::to_string));
    let text = serde_json::to_string(&fields).map_err(PassError::new)?;
    Ok((kind.unwrap_or_default(), text))
}

/// [`named`] taken back.
pub(crate) fn spec(
    kind: &str,
    attributes: &str,
    tensors: &[String],
) -> Result<TermSpec, PassError> {
    let attributes = if attributes.is_empty() {
        "{}"
    } else {
        attributes
    };
    let bad = |e: serde_json::Error| PassError::new(format!("attributes of `{kind}`: {e}"));
    let mut fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(attributes).map_err(bad)?;
    if kind.contains('.') {
        return Ok(TermSpec::Custom {
            name: kind.to_string(),
            tensors: tensors.to_vec(),
            attrs: fields,
        });
    }
    fields.insert("kind".to_string(), kind.into());
    serde_json::from_value(fields.into()).map_err(bad)
}
