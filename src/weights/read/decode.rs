//! Stored elements of every real type as f32.

use std::sync::LazyLock;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::super::DType;

/// True for types whose elements are single real numbers.
pub(super) fn is_supported(dtype: DType) -> bool {
    dtype.is_float() || dtype.is_integer() || dtype == DType::Bool
}

/// Decodes little-endian elements to f32, rounding where f32 is narrower.
///
/// Returns false, leaving `out` as it was, where the type has no real value or
/// `bytes` is not exactly as long as `out` needs. Cost: one pass over the bytes.
pub fn decode_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) -> bool {
    let fits = dtype.bytes_for(out.len() as u64) == Some(bytes.len() as u64);
    if fits && is_supported(dtype) {
        decode_from_bit(dtype, bytes, 0, out);
    }
    fits && is_supported(dtype)
}

/// Decodes elements that start `bit` bits into `bytes`; what is missing is kept.
pub(super) fn decode_from_bit(dtype: DType, bytes: &[u8], bit: u32, out: &mut [f32]) {
    use DType::*;
    match dtype {
        F32 => each(bytes, out, f32::from_le_bytes),
        F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        BF16 => each(bytes, out, |b| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        }),
        F16 => decode_f16(bytes, out),
        I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        U8 => each(bytes, out, |[b]| f32::from(b)),
        Bool => each(bytes, out, |[b]| f32::from(b != 0)),
        F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F8E8M0 => {
            let table = table(dtype);
            each(bytes, out, |[b]| {
                table.get(usize::from(b)).copied().unwrap_or(f32::NAN)
            });
        }
        F6E2M3 | F6E3M2 | F4E2M1 | I4 | I2 | U4 | U2 => decode_packed(dtype, bytes, bit, out),
        C64 | C128 | String => {}
    }
}

/// Decodes elements of N bytes each.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    out.iter_mut()
        .zip(elements)
        .for_each(|(to, from)| *to = value(*from));
}

/// Takes the hardware's conversion, in pieces since the bytes are not aligned.
fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    const PIECE: usize = 512;
    let mut piece = [f16::ZERO; PIECE];
    for (from, to) in bytes.chunks(2 * PIECE).zip(out.chunks_mut(PIECE)) {
        let (elements, _) = from.as_chunks::<2>();
        piece
            .iter_mut()
            .zip(elements)
            .for_each(|(p, b)| *p = f16::from_le_bytes(*b));
        if let Some(piece) = piece.get(..to.len()) {
            piece.convert_to_f32_slice(to);
        }
    }
}

/// Decodes a little-endian bit stream of 2, 4 or 6 bits per element.
fn decode_packed(dtype: DType, bytes: &[u8], bit: u32, out: &mut [f32]) {
    let bits = dtype.bits() as usize;
    let mask = (1_u16 << bits) - 1;
    let table = table(dtype);
    let byte = |at: usize| u16::from(bytes.get(at).copied().unwrap_or(0));
    for (i, to) in out.iter_mut().enumerate() {
        let at = bit as usize + i * bits;
        let pair = byte(at / 8) | byte(at / 8 + 1) << 8;
        let code = usize::from(pair >> (at % 8) & mask);
        *to = table.get(code).copied().unwrap_or(f32::NAN);
    }
}

/// Values of all codes of a type of up to 8 bits.
fn table(dtype: DType) -> &'static [f32; 256] {
    static TABLES: LazyLock<Vec<[f32; 256]>> = LazyLock::new(|| {
        let values = |dtype| std::array::from_fn(|code| small_value(dtype, code as u8));
        DType::all().map(values).collect()
    });
    // There is a table for every type; those of wide types are not used.
    TABLES.get(dtype as usize).unwrap_or(&[f32::NAN; 256])
}

fn small_value(dtype: DType, code: u8) -> f32 {
    let signed = |bits: u32| {
        let code = i32::from(code) & ((1 << bits) - 1);
        let wraps = code >> (bits - 1) == 1;
        (if wraps { code - (1 << bits) } else { code }) as f32
    };
    match dtype {
        DType::I4 => signed(4),
        DType::I2 => signed(2),
        DType::U4 | DType::U2 => f32::from(code),
        _ => minifloat(dtype, code),
    }
}

/// Value of an 8, 6 or 4-bit float (OCP 8-bit and MX formats, and the FNUZ kind).
fn minifloat(dtype: DType, code: u8) -> f32 {
    // (exponent bits, mantissa bits, bias)
    let (exponent_bits, mantissa_bits, bias) = match dtype {
        DType::F8E4M3FN => (4, 3, 7),
        DType::F8E4M3FNUZ => (4, 3, 8),
        DType::F8E5M2 => (5, 2, 15),
        DType::F8E5M2FNUZ => (5, 2, 16),
        DType::F6E2M3 => (2, 3, 1),
        DType::F6E3M2 => (3, 2, 3),
        DType::F4E2M1 => (2, 1, 1),
        DType::F8E8M0 if code == 0xFF => return f32::NAN,
        // 2^-127 is subnormal in f32; in f64 it is not.
        DType::F8E8M0 => return 2_f64.powi(i32::from(code) - 127) as f32,
        _ => return f32::NAN,
    };
    let magnitude = i32::from(code) & ((1 << (exponent_bits + mantissa_bits)) - 1);
    let negative = code >> (exponent_bits + mantissa_bits) & 1 == 1;
    let exponent = magnitude >> mantissa_bits;
    let mantissa = magnitude & ((1 << mantissa_bits) - 1);
    let special = match dtype {
        DType::F8E4M3FN if magnitude == 0x7F => Some(f32::NAN),
        DType::F8E4M3FNUZ | DType::F8E5M2FNUZ if code == 0x80 => Some(f32::NAN),
        DType::F8E5M2 if magnitude == 0x7C => Some(f32::INFINITY),
        DType::F8E5M2 if magnitude > 0x7C => Some(f32::NAN),
        _ => None,
    };
    let value = special.unwrap_or_else(|| {
        let (significand, power) = match exponent {
            0 => (mantissa, 1 - bias),
            _ => (mantissa | 1 << mantissa_bits, exponent - bias),
        };
        significand as f32 * 2_f32.powi(power - mantissa_bits)
    });
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dtype: DType, bytes: &[u8], n: usize) -> Vec<f32> {
        let mut out = vec![9.0; n];
        assert!(decode_f32(dtype, bytes, &mut out), "{dtype}");
        out
    }

    #[test]
    fn wide_types() {
        assert_eq!(one(DType::F32, &1.5_f32.to_le_bytes(), 1), [1.5]);
        assert_eq!(one(DType::F64, &(-0.1_f64).to_le_bytes(), 1), [-0.1]);
        assert_eq!(one(DType::BF16, &[0x80, 0x3F, 0x00, 0xC0], 2), [1.0, -2.0]);
        assert_eq!(one(DType::I8, &[0xFF, 0x7F], 2), [-1.0, 127.0]);
        assert_eq!(one(DType::I64, &(-5_i64).to_le_bytes(), 1), [-5.0]);
        assert_eq!(one(DType::Bool, &[0, 2], 2), [0.0, 1.0]);
        let mut out = [0.0; 2];
        assert!(!decode_f32(DType::F32, &[0; 7], &mut out));
        assert!(!decode_f32(DType::C64, &[0; 16], &mut out));
    }

    #[test]
    fn f16_matches_scalar_conversion() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let out = one(DType::F16, &bytes, 65536);
        for (code, value) in (0..=u16::MAX).zip(out) {
            let expected = f16::from_bits(code).to_f32();
            assert!(
                value == expected || value.is_nan() && expected.is_nan(),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn eight_bit_floats() {
        let codes = [0x00, 0x80, 0x38, 0x7E, 0x7F, 0x01, 0x08];
        let fn_ = one(DType::F8E4M3FN, &codes, 7);
        assert_eq!(fn_.get(..4), Some(&[0.0, -0.0, 1.0, 448.0][..]));
        assert!(fn_[4].is_nan());
        assert_eq!((fn_[5], fn_[6]), (2_f32.powi(-9), 2_f32.powi(-6)));
        let fnuz = one(DType::F8E4M3FNUZ, &codes, 7);
        assert!(fnuz[1].is_nan());
        assert_eq!((fnuz[2], fnuz[3], fnuz[4]), (0.5, 224.0, 240.0));
        let e5 = one(DType::F8E5M2, &[0x3C, 0x7B, 0x7C, 0xFC, 0x7D, 0x01], 6);
        assert_eq!(
            (e5[0], e5[1], e5[2], e5[3]),
            (1.0, 57344.0, f32::INFINITY, f32::NEG_INFINITY)
        );
        assert!(e5[4].is_nan());
        assert_eq!(e5[5], 2_f32.powi(-16));
        let e5z = one(DType::F8E5M2FNUZ, &[0x40, 0x7F, 0x80], 3);
        assert_eq!((e5z[0], e5z[1]), (1.0, 57344.0));
        assert!(e5z[2].is_nan());
        let e8 = one(DType::F8E8M0, &[127, 0, 254, 255], 4);
        assert_eq!(
            (e8[0], e8[1], e8[2]),
            (1.0, 2_f32.powi(-126) / 2.0, 2_f32.powi(127))
        );
        assert!(e8[3].is_nan());
    }

    #[test]
    fn packed_types_are_low_bits_first() {
        assert_eq!(one(DType::U4, &[0x21, 0x0F], 3), [1.0, 2.0, 15.0]);
        assert_eq!(one(DType::I4, &[0x8F], 2), [-1.0, -8.0]);
        assert_eq!(one(DType::I2, &[0b1110_0100], 4), [0.0, 1.0, -2.0, -1.0]);
        assert_eq!(one(DType::U2, &[0b1110_0100], 4), [0.0, 1.0, 2.0, 3.0]);
        let f4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        assert_eq!(one(DType::F4E2M1, &[0x10, 0x32, 0x54, 0x76], 8), f4);
        assert_eq!(one(DType::F4E2M1, &[0xF9], 2), [-0.5, -6.0]);
        // Codes 1, 0x1F, 0x20, 0x3F in 24 bits.
        let stream = 1_u32 | 0x1F << 6 | 0x20 << 12 | 0x3F << 18;
        let bytes = &stream.to_le_bytes()[..3];
        assert_eq!(one(DType::F6E2M3, bytes, 4), [0.125, 7.5, -0.0, -7.5]);
        assert_eq!(one(DType::F6E3M2, bytes, 4), [0.0625, 28.0, -0.0, -28.0]);
    }
}
