//! Stored elements of every real type as f32.

use super::super::DType;
use crate::numeric::float::{Float, decode_into, encode_bf16, encode_f16, small_to_f32};

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
        F32 => decode_into(Float::F32, bytes, out),
        F64 => decode_into(Float::F64, bytes, out),
        F16 => decode_into(Float::F16, bytes, out),
        BF16 => decode_into(Float::Bf16, bytes, out),
        F8E4M3FN => decode_into(Float::F8E4M3, bytes, out),
        F8E4M3FNUZ => decode_into(Float::F8E4M3Fnuz, bytes, out),
        F8E5M2 => decode_into(Float::F8E5M2, bytes, out),
        F8E5M2FNUZ => decode_into(Float::F8E5M2Fnuz, bytes, out),
        F8E8M0 => decode_into(Float::F8E8M0, bytes, out),
        I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        I8 => each(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        U8 => each(bytes, out, |[b]| f32::from(b)),
        Bool => each(bytes, out, |[b]| f32::from(b != 0)),
        F6E2M3 => decode_packed(dtype, bytes, bit, out, |code| small_to_f32(code, 2, 3, 1)),
        F6E3M2 => decode_packed(dtype, bytes, bit, out, |code| small_to_f32(code, 3, 2, 3)),
        F4E2M1 => decode_packed(dtype, bytes, bit, out, |code| small_to_f32(code, 2, 1, 1)),
        I4 => decode_packed(dtype, bytes, bit, out, |code| signed(code, 4)),
        I2 => decode_packed(dtype, bytes, bit, out, |code| signed(code, 2)),
        U4 | U2 => decode_packed(dtype, bytes, bit, out, |code| code as f32),
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

/// Decodes a little-endian bit stream of 2, 4 or 6 bits per element.
fn decode_packed(
    dtype: DType,
    bytes: &[u8],
    bit: u32,
    out: &mut [f32],
    value: impl Fn(u32) -> f32,
) {
    let bits = dtype.bits() as usize;
    let mask = (1_u32 << bits) - 1;
    let table: [f32; 64] = std::array::from_fn(|code| value(code as u32 & mask));
    let byte = |at: usize| u32::from(bytes.get(at).copied().unwrap_or(0));
    for (i, to) in out.iter_mut().enumerate() {
        let at = bit as usize + i * bits;
        let pair = byte(at / 8) | byte(at / 8 + 1) << 8;
        let code = (pair >> (at % 8) & mask) as usize;
        *to = table.get(code).copied().unwrap_or(f32::NAN);
    }
}

/// Two's complement of so many bits.
fn signed(code: u32, bits: u32) -> f32 {
    let value = code as i32;
    (value - (value >> (bits - 1) << bits)) as f32
}

/// Values as stored elements, little-endian, rounded to the nearest; `None` for other types than f32, f16
/// and bf16.
pub fn encode_f32(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    Some(match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => encode_f16(values),
        DType::BF16 => encode_bf16(values),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use half::f16;

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
