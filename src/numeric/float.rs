//! Floating-point dtypes as bytes: decoding to `f32`, encoding to 16 bits.
//!
//! All layouts are little-endian. The 8-bit formats follow the OCP 8-bit
//! floating point specification 1.0 (`E4M3`, `E5M2`), its MX supplement
//! (`E8M0`, `E2M1`), and the `FNUZ` variants of ONNX (no negative zero, one NaN).

use super::simd::{Level, Simd, multiversion};
use half::{bf16, f16};
use std::sync::OnceLock;

/// A floating-point dtype of a weight file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE single precision.
    F32,
    /// IEEE double precision, rounded to `f32`.
    F64,
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    Bf16,
    /// OCP E4M3 (`float8_e4m3fn`): finite, NaN is `S.1111.111`.
    F8E4M3,
    /// OCP E5M2 (`float8_e5m2`): with infinities.
    F8E5M2,
    /// E4M3 FNUZ: bias 8, NaN is 0x80.
    F8E4M3Fnuz,
    /// E5M2 FNUZ: bias 16, NaN is 0x80.
    F8E5M2Fnuz,
    /// E8M0: a power of two, NaN is 0xff.
    F8E8M0,
    /// E2M1, two values a byte, the first in the low bits.
    F4E2M1,
}

impl Float {
    /// Bits per value.
    pub fn bits(self) -> usize {
        match self {
            Float::F64 => 64,
            Float::F32 => 32,
            Float::F16 | Float::Bf16 => 16,
            Float::F4E2M1 => 4,
            _ => 8,
        }
    }

    /// Values that `bytes` bytes hold.
    pub fn count(self, bytes: usize) -> usize {
        bytes / self.bits().div_ceil(8) * (8 / self.bits().min(8))
    }
}

/// Bytes that don't hold as many values as the output has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{values} {float:?} values need {expected} bytes, but {actual} were given")]
pub struct DecodeError {
    /// The dtype.
    pub float: Float,
    /// Values asked for.
    pub values: usize,
    /// Bytes that they take.
    pub expected: usize,
    /// Bytes given.
    pub actual: usize,
}

/// Decodes `out.len()` values from little-endian bytes, aligned or not.
///
/// # Errors
/// If `bytes` isn't exactly as long as the values are.
pub fn decode(float: Float, bytes: &[u8], out: &mut [f32]) -> Result<(), DecodeError> {
    let expected = out.len().saturating_mul(float.bits()).div_ceil(8);
    if bytes.len() != expected {
        return Err(DecodeError {
            float,
            values: out.len(),
            expected,
            actual: bytes.len(),
        });
    }
    decode_into(float, bytes, out);
    Ok(())
}

/// Decodes as many values as both sides have room for.
pub(crate) fn decode_into(float: Float, bytes: &[u8], out: &mut [f32]) {
    decode_at(Level::detect(), float, bytes, out);
}

multiversion! {
    fn decode_at(float: Float, bytes: &[u8], out: &mut [f32]) = decode_body;
}

#[inline(always)]
fn decode_body<S: Simd>(_simd: S, float: Float, bytes: &[u8], out: &mut [f32]) {
    match float {
        Float::F32 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *o = f32::from_le_bytes(*b);
            }
        }
        Float::F64 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *o = f64::from_le_bytes(*b) as f32;
            }
        }
        Float::F16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f16_bits_to_f32(u16::from_le_bytes(*b));
            }
        }
        Float::Bf16 => {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        Float::F4E2M1 => {
            for (pair, &b) in out.chunks_mut(2).zip(bytes) {
                for (i, o) in pair.iter_mut().enumerate() {
                    *o = small_to_f32(u32::from(b >> (4 * i) & 15), 2, 1, 1);
                }
            }
        }
        _ => {
            let table = byte_table(float);
            for (o, &b) in out.iter_mut().zip(bytes) {
                *o = table[usize::from(b)];
            }
        }
    }
}

/// `f16` to `f32` by arithmetic that vectorises without special instructions.
#[inline(always)]
pub(crate) fn f16_bits_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // 2^112 moves the exponent bias from 15 to 127 and normalises subnormals.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// The values of all 256 bytes of an 8-bit format, computed once.
fn byte_table(float: Float) -> &'static [f32; 256] {
    type Table = OnceLock<[f32; 256]>;
    static TABLES: [Table; 5] = [const { Table::new() }; 5];
    let [e4m3, e4m3_fnuz, e5m2, e5m2_fnuz, e8m0] = &TABLES;
    let table = match float {
        Float::F8E4M3 => e4m3,
        Float::F8E4M3Fnuz => e4m3_fnuz,
        Float::F8E5M2 => e5m2,
        Float::F8E5M2Fnuz => e5m2_fnuz,
        _ => e8m0,
    };
    table.get_or_init(|| compute_byte_table(float))
}

fn compute_byte_table(float: Float) -> [f32; 256] {
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        match float {
            Float::F8E4M3 if byte & 0x7f == 0x7f => f32::NAN,
            Float::F8E4M3 => small_to_f32(byte, 4, 3, 7),
            Float::F8E5M2 => f16_bits_to_f32((byte << 8) as u16),
            Float::F8E4M3Fnuz | Float::F8E5M2Fnuz if byte == 0x80 => f32::NAN,
            Float::F8E4M3Fnuz => small_to_f32(byte, 4, 3, 8),
            Float::F8E5M2Fnuz => small_to_f32(byte, 5, 2, 16),
            _ if byte == 0xff => f32::NAN,
            _ => (byte as f32 - 127.0).exp2(),
        }
    })
}

/// A sign, exponent and mantissa of few bits, without specials.
pub(crate) fn small_to_f32(bits: u32, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
    let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f32 / (1 << mantissa_bits) as f32;
    let exponent = (bits >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
    let magnitude = if exponent == 0 {
        mantissa * f32::powi(2.0, 1 - bias)
    } else {
        (1.0 + mantissa) * f32::powi(2.0, exponent - bias)
    };
    if bits >> (exponent_bits + mantissa_bits) & 1 == 1 {
        -magnitude
    } else {
        magnitude
    }
}

/// Rounds to `f16`, nearest even; beyond its range is infinite.
pub fn to_f16(values: &[f32]) -> Vec<f16> {
    values.iter().map(|&x| f16::from_f32(x)).collect()
}

/// Rounds to `bf16`, nearest even.
pub fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&x| bf16::from_f32(x)).collect()
}

/// Encodes as little-endian `f16` bytes, nearest even.
pub fn encode_f16(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&x| f16::from_f32(x).to_le_bytes())
        .collect()
}

/// Encodes as little-endian `bf16` bytes, nearest even.
pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn every_16_bit_value_decodes() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 65536];
        for level in Level::available() {
            decode_at(level, Float::F16, &bytes, &mut out);
            for (bits, &x) in (0..=u16::MAX).zip(&out) {
                assert!(same(x, f16::from_bits(bits).to_f32()), "{bits:#x} {x}");
            }
            decode_at(level, Float::Bf16, &bytes, &mut out);
            for (bits, &x) in (0..=u16::MAX).zip(&out) {
                assert!(same(x, bf16::from_bits(bits).to_f32()), "{bits:#x} {x}");
            }
        }
    }

    #[test]
    fn small_formats() {
        let one = |float, byte: u8| {
            let mut out = [0.0];
            decode(float, &[byte], &mut out).unwrap();
            out[0]
        };
        assert_eq!(one(Float::F8E4M3, 0x7e), 448.0);
        assert_eq!(one(Float::F8E4M3, 0x01), 2f32.powi(-9));
        assert_eq!(one(Float::F8E4M3, 0xb8), -1.0);
        assert!(one(Float::F8E4M3, 0xff).is_nan());
        assert_eq!(one(Float::F8E5M2, 0x7b), 57344.0);
        assert_eq!(one(Float::F8E5M2, 0xfc), f32::NEG_INFINITY);
        assert_eq!(one(Float::F8E5M2, 0x01), 2f32.powi(-16));
        assert_eq!(one(Float::F8E4M3Fnuz, 0x7f), 240.0);
        assert_eq!(one(Float::F8E5M2Fnuz, 0x7f), 57344.0);
        assert!(one(Float::F8E4M3Fnuz, 0x80).is_nan());
        assert_eq!(one(Float::F8E8M0, 127), 1.0);
        assert_eq!(one(Float::F8E8M0, 0), 2f32.powi(-127));
        assert!(one(Float::F8E8M0, 255).is_nan());
        let mut out = [0.0; 3];
        decode(Float::F4E2M1, &[0x17, 0x0f], &mut out).unwrap();
        assert_eq!(out, [6.0, 0.5, -6.0]);
    }

    #[test]
    fn wide_formats_and_lengths() {
        let mut out = [0.0; 2];
        let bytes: Vec<u8> = [1.5f64, -1e300]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        decode(Float::F64, &bytes, &mut out).unwrap();
        assert_eq!(out, [1.5, f32::NEG_INFINITY]);
        assert!(decode(Float::F32, &bytes[..7], &mut out).is_err());
        assert_eq!(encode_bf16(&[1.0, -2.5]), [0x80, 0x3f, 0x20, 0xc0]);
        assert_eq!(to_f16(&[65536.0])[0], f16::INFINITY);
        assert_eq!(Float::F4E2M1.count(3), 6);
        assert_eq!(Float::F64.count(16), 2);
        assert_eq!(Float::Bf16.count(7), 3);
    }
}
