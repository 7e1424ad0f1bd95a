//! Rows of tables out of packs, which are made here by the rules of `kernels/README.md`.

use crate::data::{Random, assert_close, f16_bits, from_f16};
use crate::emulate::{Kernel, Launch};
use half::{bf16, f16};

/// Where a weight's row and column lie in a fragment: lane, register, byte.
fn place(row: usize, k: usize) -> (usize, usize, usize) {
    let register = row / 8 + 2 * (k / 16 % 2);
    ((row % 8) * 4 + k / 4 % 4, register, k % 4)
}

/// Codes `[rows, cols]` (unsigned) in tiles of 16 rows.
pub(crate) fn pack_codes(bits: usize, codes: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let tiles = rows.div_ceil(16);
    let (c64, c128) = (cols.div_ceil(64), cols.div_ceil(128));
    let bytes = match bits {
        8 => 1024 * c64,
        4 => 512 * c64,
        3 => 768 * c128,
        _ => 512 * c128,
    };
    let mut out = vec![0u8; tiles * bytes];
    for row in 0..rows {
        for k in 0..cols {
            let code = codes[row * cols + k];
            let (lane, register, byte) = place(row % 16, k);
            let tile = &mut out[row / 16 * bytes..][..bytes];
            let within = lane * 16 + register * 4 + byte;
            match bits {
                8 => tile[k / 32 * 512 + within] = code ^ 0x80, // code − 128
                4 => tile[k / 64 * 512 + within] |= code << (4 * (k / 32 % 2)),
                2 => tile[k / 128 * 512 + within] |= code << (2 * (k / 32 % 4)),
                _ => {
                    let (unit, pair, block) = (k / 256, k / 128 % 2, k / 32 % 4);
                    let pairs = (c128 - 2 * unit).min(2);
                    let unit = &mut tile[unit * 1536..];
                    unit[pair * 512 + within] |= (code & 3) << (2 * block);
                    let word = pairs * 512 + lane * 8 * pairs + pair * 8 + register / 2 * 4;
                    unit[word + byte] |= (code >> 2) << (((2 * block + 2) & 7) + register % 2);
                }
            }
        }
    }
    out
}

/// f16 or bf16 (2 bytes) or f32 (4) in tiles; `bytes_of` gives a value's bytes.
pub(crate) fn pack_floats(
    size: usize,
    values: &[f32],
    rows: usize,
    cols: usize,
    bytes_of: impl Fn(f32) -> Vec<u8>,
) -> Vec<u8> {
    let (tiles, parts) = (rows.div_ceil(16), cols.div_ceil(64) * 4);
    let bytes = parts * 256 * size;
    let mut out = vec![0u8; tiles * bytes];
    for row in 0..rows {
        for k in 0..cols {
            let (lane, _, byte) = place(row % 16, k);
            let part = k / 64 * 4 + k / 16 % 4;
            let at = match size {
                2 => part * 512 + lane * 16 + row % 16 / 8 * 8 + byte * 2,
                _ => part * 1024 + row % 16 / 8 * 512 + lane * 16 + byte * 4,
            };
            out[row / 16 * bytes + at..][..size].copy_from_slice(&bytes_of(values[row * cols + k]));
        }
    }
    out
}

/// A value per row and group in the order of scales: rows g and g + 8 next to each other.
pub(crate) fn by_tile<T: Copy>(values: &[T], rows: usize, groups: usize, none: T) -> Vec<T> {
    let mut out = vec![none; rows.div_ceil(16) * groups * 16];
    for row in 0..rows {
        for g in 0..groups {
            let r = row % 16;
            out[(row / 16 * groups + g) * 16 + 2 * (r % 8) + r / 8] = values[row * groups + g];
        }
    }
    out
}

fn check(
    kernel: &Kernel,
    table: &[f64],
    (rows, width): (usize, usize),
    buffers: impl Fn(Launch) -> Launch,
) {
    let mut random = Random(70);
    let mut ids: Vec<i32> = (0..6).map(|_| random.below(rows) as i32).collect();
    ids[0] = rows as i32 - 1;
    ids[1] = rows as i32;
    ids[2] = -1;
    let ld = width + 5;
    let before = random.normals(ids.len() * ld, 1.0);
    for add in [0, 1] {
        let launch = Launch::new([ids.len(), 1, 1], 256)
            .input("ids", &ids)
            .null();
        let launch = buffers(launch)
            .in_out("y", &before)
            .ints(&[rows, width, ld, add])
            .floats(&[1.5]);
        kernel.run_all(&launch, |outcome| {
            let y: Vec<f32> = outcome.get("y");
            for (t, &id) in ids.iter().enumerate() {
                let got = &y[t * ld..][..width];
                if id < 0 || id >= rows as i32 {
                    assert!(got.iter().all(|v| v.is_nan()), "id {id}");
                    continue;
                }
                let row = &table[id as usize * width..][..width];
                let old = |k: usize| {
                    if add == 1 {
                        f64::from(before[t * ld + k])
                    } else {
                        0.0
                    }
                };
                let want: Vec<f64> = (0..width).map(|k| old(k) + 1.5 * row[k]).collect();
                assert_close(got, &want, 3e-7, "an embedding");
                assert_eq!(
                    y[t * ld + width..(t + 1) * ld],
                    before[t * ld + width..(t + 1) * ld]
                );
            }
        });
    }
}

#[test]
fn codes_are_decoded() {
    let mut random = Random(71);
    for (bits, group, zeros) in [
        (8, 32, false),
        (8, 0, true),
        (4, 64, false),
        (4, 32, true),
        (3, 64, true),
        (2, 128, true),
        (3, 0, false),
    ] {
        let defines = [
            ("FORMAT", 0),
            ("BITS", bits),
            ("GROUP", group),
            ("ZEROS", usize::from(zeros)),
        ];
        let Some(kernel) = Kernel::compile("embed", &defines) else {
            return;
        };
        for (rows, width) in [(35usize, 64usize), (16, 200), (50, 400), (3, 260)] {
            let groups = if group == 0 { 1 } else { width.div_ceil(group) };
            let codes: Vec<u8> = (0..rows * width)
                .map(|_| random.below(1 << bits) as u8)
                .collect();
            let scales = f16_bits(&random.normals(rows * groups, 0.1));
            let zero: Vec<u8> = (0..rows * groups)
                .map(|_| random.below(1 << bits) as u8)
                .collect();
            let table: Vec<f64> = (0..rows * width)
                .map(|i| {
                    let g = i / width * groups + (i % width).checked_div(group).unwrap_or(0);
                    let z = if zeros {
                        f64::from(zero[g])
                    } else {
                        f64::from(1 << (bits - 1))
                    };
                    (f64::from(codes[i]) - z) * from_f16(scales[g])
                })
                .collect();
            let packed = pack_codes(bits, &codes, rows, width);
            let tile_scales = by_tile(&scales, rows, groups, 0);
            let tile_zeros = by_tile(&zero, rows, groups, 0);
            let tile_zeros: Vec<u8> = match bits {
                8 => tile_zeros,
                _ => tile_zeros.chunks(2).map(|z| z[0] | z[1] << 4).collect(),
            };
            check(&kernel, &table, (rows, width), |launch| {
                let launch = launch.input("q", &packed).input("scales", &tile_scales);
                if zeros {
                    launch.input("zeros", &tile_zeros)
                } else {
                    launch.null()
                }
            });
        }
    }
}

#[test]
fn floats_are_read() {
    let mut random = Random(72);
    for format in 1..4 {
        let Some(kernel) = Kernel::compile(
            "embed",
            &[("FORMAT", format), ("BITS", 0), ("GROUP", 0), ("ZEROS", 0)],
        ) else {
            return;
        };
        let (rows, width) = (37, 200);
        let values = random.normals(rows * width, 1.0);
        let (packed, table): (Vec<u8>, Vec<f64>) = match format {
            1 => (
                pack_floats(2, &values, rows, width, |v| {
                    f16::from_f32(v).to_le_bytes().to_vec()
                }),
                values.iter().map(|&v| f16::from_f32(v).to_f64()).collect(),
            ),
            2 => (
                pack_floats(2, &values, rows, width, |v| {
                    bf16::from_f32(v).to_le_bytes().to_vec()
                }),
                values.iter().map(|&v| bf16::from_f32(v).to_f64()).collect(),
            ),
            _ => (
                pack_floats(4, &values, rows, width, |v| v.to_le_bytes().to_vec()),
                values.iter().map(|&v| f64::from(v)).collect(),
            ),
        };
        check(&kernel, &table, (rows, width), |launch| {
            launch.input("q", &packed).nulls(2)
        });
    }
}
