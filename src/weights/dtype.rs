//! Element types of tensors, in every container that is read or written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::numeric::float::Float;

/// Type of one tensor element.
///
/// Covers ONNX `TensorProto.DataType` 1 to 28 and the dtypes of safetensors.
/// Types narrower than a byte are packed, low bits first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
    /// OCP E4M3: finite, ±448, NaN is S.1111.111.
    F8E4M3FN,
    /// E4M3 with bias 8, no negative zero; NaN is 0x80.
    F8E4M3FNUZ,
    /// OCP E5M2: infinities and NaNs as in IEEE 754.
    F8E5M2,
    /// E5M2 with bias 16, no negative zero; NaN is 0x80.
    F8E5M2FNUZ,
    /// OCP E8M0: a power of two, 2^(code − 127); NaN is 0xFF.
    F8E8M0,
    /// OCP E2M3 in 6 bits: finite, ±7.5.
    F6E2M3,
    /// OCP E3M2 in 6 bits: finite, ±28.
    F6E3M2,
    /// OCP E2M1 in 4 bits: finite, ±6.
    F4E2M1,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Signed 4-bit integer, two in a byte.
    I4,
    /// Signed 2-bit integer, four in a byte.
    I2,
    /// Unsigned 64-bit integer.
    U64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 4-bit integer, two in a byte.
    U4,
    /// Unsigned 2-bit integer, four in a byte.
    U2,
    /// Boolean, one byte each.
    Bool,
    /// Complex number of two f32.
    C64,
    /// Complex number of two f64.
    C128,
    /// Text of any length: no fixed size.
    String,
}

/// One row per type: (type, text name, bits, safetensors name, ONNX number).
#[rustfmt::skip]
const TABLE: [(DType, &str, u32, Option<&str>, i32); 28] = [
    (DType::F64,        "f64",         64, Some("F64"),         11),
    (DType::F32,        "f32",         32, Some("F32"),         1),
    (DType::F16,        "f16",         16, Some("F16"),         10),
    (DType::BF16,       "bf16",        16, Some("BF16"),        16),
    (DType::F8E4M3FN,   "f8e4m3fn",    8,  Some("F8_E4M3"),     17),
    (DType::F8E4M3FNUZ, "f8e4m3fnuz",  8,  Some("F8_E4M3FNUZ"), 18),
    (DType::F8E5M2,     "f8e5m2",      8,  Some("F8_E5M2"),     19),
    (DType::F8E5M2FNUZ, "f8e5m2fnuz",  8,  Some("F8_E5M2FNUZ"), 20),
    (DType::F8E8M0,     "f8e8m0",      8,  Some("F8_E8M0"),     24),
    (DType::F6E2M3,     "f6e2m3",      6,  Some("F6_E2M3"),     27),
    (DType::F6E3M2,     "f6e3m2",      6,  Some("F6_E3M2"),     28),
    (DType::F4E2M1,     "f4e2m1",      4,  Some("F4"),          23),
    (DType::I64,        "i64",         64, Some("I64"),         7),
    (DType::I32,        "i32",         32, Some("I32"),         6),
    (DType::I16,        "i16",         16, Some("I16"),         5),
    (DType::I8,         "i8",          8,  Some("I8"),          3),
    (DType::I4,         "i4",          4,  None,                22),
    (DType::I2,         "i2",          2,  None,                26),
    (DType::U64,        "u64",         64, Some("U64"),         13),
    (DType::U32,        "u32",         32, Some("U32"),         12),
    (DType::U16,        "u16",         16, Some("U16"),         4),
    (DType::U8,         "u8",          8,  Some("U8"),          2),
    (DType::U4,         "u4",          4,  None,                21),
    (DType::U2,         "u2",          2,  None,                25),
    (DType::Bool,       "bool",        8,  Some("BOOL"),        9),
    (DType::C64,        "c64",         64, Some("C64"),         14),
    (DType::C128,       "c128",        128, None,               15),
    (DType::String,     "string",      0,  None,                8),
];

impl DType {
    /// Every type, in declaration order.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (DType, &'static str, u32, Option<&'static str>, i32) {
        // The table is in declaration order; a test holds it to that.
        &TABLE[self as usize]
    }

    /// Name in the textual IR: lower case, as Rust spells numeric types.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bits of one element; 0 for `string`, which has no fixed size.
    pub fn bits(self) -> u32 {
        self.row().2
    }

    /// Bytes of `elements` packed elements; `None` on overflow or for `string`.
    ///
    /// The last byte of a sub-byte type may be partly used.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        if self == DType::String {
            return None;
        }
        let bits = u128::from(elements) * u128::from(self.bits());
        u64::try_from(bits.div_ceil(8)).ok()
    }

    /// Bytes of a tensor of this shape; `None` on overflow or for `string`.
    pub fn bytes_for_shape(self, shape: &[u64]) -> Option<u64> {
        let elements = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim))?;
        self.bytes_for(elements)
    }

    /// True for the real floating-point types of any width.
    pub fn is_float(self) -> bool {
        (self as usize) <= DType::F4E2M1 as usize
    }

    /// The floating-point format, where this is one.
    pub fn as_float(self) -> Option<Float> {
        Some(match self {
            DType::F64 => Float::F64,
            DType::F32 => Float::F32,
            DType::F16 => Float::F16,
            DType::BF16 => Float::Bf16,
            DType::F8E4M3FN => Float::F8E4M3,
            DType::F8E4M3FNUZ => Float::F8E4M3Fnuz,
            DType::F8E5M2 => Float::F8E5M2,
            DType::F8E5M2FNUZ => Float::F8E5M2Fnuz,
            DType::F8E8M0 => Float::F8E8M0,
            DType::F4E2M1 => Float::F4E2M1,
            _ => return None,
        })
    }

    /// True for signed and unsigned integers of any width, not for `bool`.
    pub fn is_integer(self) -> bool {
        let index = self as usize;
        (DType::I64 as usize..=DType::U2 as usize).contains(&index)
    }

    /// Name in a safetensors header; `None` where the format has none.
    pub fn safetensors_name(self) -> Option<&'static str> {
        self.row().3
    }

    /// The type that a safetensors header calls `name`.
    pub fn from_safetensors(name: &str) -> Option<DType> {
        TABLE
            .iter()
            .find(|row| row.3 == Some(name))
            .map(|row| row.0)
    }

    /// Number in ONNX `TensorProto.DataType`.
    pub fn onnx_number(self) -> i32 {
        self.row().4
    }

    /// The type that ONNX numbers `number`; `None` for 0 and unknown numbers.
    pub fn from_onnx(number: i32) -> Option<DType> {
        TABLE.iter().find(|row| row.4 == number).map(|row| row.0)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no element type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown element type `{0}`; known are f32, f16, bf16, i64, u8, bool, ... (see DType)")]
pub struct UnknownDType(pub String);

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<DType, UnknownDType> {
        let row = TABLE.iter().find(|row| row.1 == name);
        row.map(|row| row.0)
            .ok_or_else(|| UnknownDType(name.chars().take(40).collect()))
    }
}

impl Serialize for DType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DType, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_names_round_trip() {
        for (index, dtype) in DType::all().enumerate() {
            assert_eq!(dtype as usize, index);
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
            assert_eq!(DType::from_onnx(dtype.onnx_number()), Some(dtype));
            if let Some(name) = dtype.safetensors_name() {
                assert_eq!(DType::from_safetensors(name), Some(dtype));
            }
        }
        assert_eq!("f31".parse::<DType>(), Err(UnknownDType("f31".into())));
    }

    #[test]
    fn onnx_numbers_are_one_to_twenty_eight() {
        let mut numbers: Vec<i32> = DType::all().map(DType::onnx_number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=28).collect::<Vec<_>>());
        assert_eq!(DType::from_onnx(0), None);
        assert_eq!(DType::from_onnx(16), Some(DType::BF16));
    }

    #[test]
    fn packed_sizes() {
        assert_eq!(DType::U4.bytes_for(3), Some(2));
        assert_eq!(DType::I2.bytes_for(5), Some(2));
        assert_eq!(DType::F6E2M3.bytes_for(4), Some(3));
        assert_eq!(DType::F32.bytes_for(u64::MAX / 4), Some(u64::MAX - 3));
        assert_eq!(DType::F32.bytes_for(u64::MAX / 4 + 1), None);
        assert_eq!(DType::F4E2M1.bytes_for(u64::MAX), Some(1 << 63));
        assert_eq!(DType::String.bytes_for(1), None);
        assert_eq!(DType::F32.bytes_for_shape(&[]), Some(4));
        assert_eq!(DType::F32.bytes_for_shape(&[1 << 40, 1 << 40]), None);
    }

    #[test]
    fn classes() {
        assert!(DType::F4E2M1.is_float() && !DType::I64.is_float());
        assert!(DType::U2.is_integer() && !DType::Bool.is_integer() && !DType::F64.is_integer());
    }
}
