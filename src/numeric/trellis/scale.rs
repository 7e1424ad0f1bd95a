//! Constants of codes: what states are multiplied with, what Gaussian weights are divided with.

/// The scale that codes weights of variance 1 best; 1 for states or bits that are not supported.
///
/// Weights of deviation `d` are divided with `d * best_scale(..)`. The least mean squared error of
/// Gaussian samples over scales, by `benches/trellis.rs`.
pub fn best_scale(states_log2: u8, bits: u8) -> f32 {
    let column = usize::from(bits).wrapping_sub(1);
    let row = usize::from(states_log2).wrapping_sub(8);
    SCALES
        .get(row)
        .and_then(|row| row.get(column))
        .map_or(1.0, |&s| f32::from(s) / 1000.0)
}

/// Thousandths, for 8 to 16 bits of state and 1 to 8 bits per weight.
const SCALES: [[u16; 8]; 9] = [
    [768, 915, 972, 1044, 1089, 1210, 1336, 1356],
    [773, 915, 972, 1017, 1074, 1161, 1230, 1224],
    [777, 894, 954, 987, 1032, 1122, 1206, 1288],
    [768, 894, 957, 978, 1026, 1095, 1176, 1221],
    [759, 890, 948, 1002, 1005, 1122, 1161, 1210],
    [764, 876, 929, 963, 1065, 1143, 1197, 1234],
    [764, 915, 929, 929, 996, 1146, 1200, 1234],
    [768, 876, 939, 966, 1056, 1107, 1158, 1176],
    [759, 883, 939, 981, 1059, 1107, 1176, 1215],
];

/// See [`super::multiplier`].
pub(super) const MULTIPLIERS: [[u32; 8]; 9] = [
    [
        0x869B_8575,
        0xB8C0_D23B,
        0xE35E_A3DD,
        0xB2AF_926F,
        0xD925_E5BF,
        0x5985_C8B9,
        0x5985_C8B9,
        0x5985_C8B9,
    ],
    [
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
        0x7965_5C7B,
    ],
    [
        0x626A_6173,
        0xB63A_3C3F,
        0x2182_8E31,
        0x6EF1_324F,
        0x68F7_B9A9,
        0x769E_D1CF,
        0x769E_D1CF,
        0x769E_D1CF,
    ],
    [
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
        0xA621_AF6D,
    ],
    [
        0xA568_8AA5,
        0xAC3B_EF75,
        0x6B68_A9A1,
        0x8F31_2C33,
        0xB818_F909,
        0x250B_3C25,
        0x250B_3C25,
        0x250B_3C25,
    ],
    [
        0x6B76_7173,
        0x444B_46C5,
        0x6B6B_5EA9,
        0x2FB2_F0F3,
        0x6A57_664B,
        0x0544_FB45,
        0x0544_FB45,
        0x0544_FB45,
    ],
    [
        0x789A_7497,
        0x3E2B_4CD1,
        0x1CA3_E123,
        0xEE92_130F,
        0xE8F9_66C7,
        0x1D45_F555,
        0x1D45_F555,
        0x1D45_F555,
    ],
    [
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
    ],
    [
        0xA5A2_797B,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
        0x89E8_C929,
        0x83DC_D12D,
        0x83DC_D12D,
        0x83DC_D12D,
    ],
];
