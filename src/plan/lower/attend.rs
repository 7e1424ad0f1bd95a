//! Attention as launches, and the layout of the KV cache.

use super::KvFormat;
use super::build::{float, int};
use super::emit::{Emit, Result};
use super::macros::{Attention, Slot};
use super::program::Growing;
use crate::plan::kernels::Launch;
use crate::plan::{Place, PlanError, Value, cost};

/// The cache of a layer.
struct Cache {
    k: Value,
    v: Value,
    k_scales: Value,
    v_scales: Value,
    capacity: u64,
    page: u64,
    pages: u64,
}

impl Emit<'_> {
    fn cache(&mut self, a: &Attention) -> Cache {
        let batch = u64::from(self.options.batch);
        // A window needs its own positions and those of the tokens that go through at once.
        let seen = a.window.map_or(self.context, |w| {
            w.saturating_add(u64::from(self.options.chunk))
        });
        let capacity = match self.options.page {
            Some(_) => self.context,
            None => self.context.min(seen),
        };
        let page = u64::from(self.options.page.unwrap_or(0));
        let (groups, each, pages) = match self.options.page {
            Some(_) => {
                let pages = self.context.div_ceil(page.max(1));
                (batch * pages, page, pages)
            }
            None => (batch, capacity, 0),
        };
        let (layer, format) = (a.cache, self.options.kv);
        let mut make = |name: &str, dtype: &str, width: u64| {
            let dims = [groups, each, a.kv_heads, width];
            self.persistent(&format!("kv.{layer}.{name}"), dtype, &dims, None)
        };
        let scales = a.head_dim.div_ceil(32);
        let (k, v, k_scales, v_scales) = match format {
            KvFormat::F16 => (
                make("k", "f16", a.head_dim),
                make("v", "f16", a.head_dim),
                Value::Null,
                Value::Null,
            ),
            KvFormat::Q8 => {
                let codes = (make("k", "s8", a.head_dim), make("v", "s8", a.head_dim));
                (
                    codes.0,
                    codes.1,
                    make("k_scales", "f16", scales),
                    make("v_scales", "f16", scales),
                )
            }
        };
        Cache {
            k,
            v,
            k_scales,
            v_scales,
            capacity,
            page,
            pages,
        }
    }

    pub(super) fn attend(
        &mut self,
        p: &mut Growing,
        name: &str,
        a: &Attention,
        qkv: Slot,
        y: Slot,
    ) -> Result<()> {
        if a.head_dim > 256 || a.kv_heads == 0 || !a.heads.is_multiple_of(a.kv_heads) {
            let problem = format!(
                "{} heads of {} over {} have no kernel",
                a.heads, a.head_dim, a.kv_heads
            );
            return Err(PlanError::unsupported("attention", name, problem));
        }
        let cache = self.cache(a);
        let quantized = i64::from(self.options.kv == KvFormat::Q8);
        let paged = i64::from(self.options.page.is_some());
        let rope = match &a.rotary {
            None => 0,
            Some(r) if r.interleaved => 2,
            Some(_) => 1,
        };
        let (frequencies, factor) = match &a.rotary {
            Some(rotary) => {
                let (weight, factor) = self.frequencies(name, rotary)?;
                (self.section(&weight, "inv_freq"), factor)
            }
            None => (Value::Null, 1.0),
        };
        let (q_gain, k_gain, eps) = match &a.norms {
            Some((q, k)) => {
                let of = [
                    self.norm_weight(q, a.head_dim)?,
                    self.norm_weight(k, a.head_dim)?,
                ];
                let [q_gain, k_gain] = of.map(|w| self.section(&w, "gain"));
                (q_gain, k_gain, q.eps)
            }
            None => (Value::Null, Value::Null, 0.0),
        };
        let width = self.width(qkv);
        let (qkv, y_value) = (self.slot(p, qkv), self.slot(p, y));
        let pages = match paged {
            1 => Value::buffer("pages"),
            _ => Value::Null,
        };
        let [q_offset, k_offset, v_offset] = a.offsets.map(int);
        let head_dim = i64::try_from(a.head_dim).unwrap_or(0);
        let group = i64::try_from(a.heads / a.kv_heads).unwrap_or(0);
        let window = a.window.unwrap_or(0);
        let seen = a.window.map_or(self.context, |w| w.min(self.context));
        let softcap = i64::from(a.softcap.is_some());
        let shared = vec![
            ("k_cache", cache.k),
            ("v_cache", cache.v),
            ("k_scales", cache.k_scales),
            ("v_scales", cache.v_scales),
            ("pages", pages),
            ("ldqkv", int(width)),
            ("q_offset", q_offset),
            ("heads", int(a.heads)),
            ("kv_heads", int(a.kv_heads)),
            ("capacity", int(cache.capacity)),
            ("page", int(cache.page)),
            ("max_pages", int(cache.pages)),
        ];
        let rotated = vec![
            ("q_gain", q_gain),
            ("k_gain", k_gain),
            ("inv_freq", frequencies),
            ("k_offset", k_offset),
            ("v_offset", v_offset),
            (
                "rotary_dim",
                int(a.rotary.as_ref().map_or(0, |r| r.rotary_dim)),
            ),
            ("norm_eps", float(eps)),
            ("rope_factor", Value::Float(factor)),
        ];
        let scores = vec![
            ("y", y_value),
            ("ldy", int(self.width(y))),
            ("window", int(window)),
            ("scale", float(a.scale)),
            ("softcap", float(a.softcap.unwrap_or(0.0))),
        ];
        let common = [("HEAD_DIM", head_dim), ("KV", quantized), ("PAGED", paged)];
        let each = self.position_bytes(a);
        let grid = |a: u64, b: u64, c: u64| [a, b, c].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        if p.prefill {
            let mut defines = common.to_vec();
            defines.extend([("QK_NORM", i64::from(a.norms.is_some())), ("ROPE", rope)]);
            let index = self.variant("rope_append", &defines);
            let given = [
                shared.clone(),
                rotated,
                vec![("qkv", qkv.clone()), ("scalars", self.scalars(p))],
            ]
            .concat();
            let launch = Launch {
                grid: grid(a.heads + 2 * a.kv_heads, p.tokens.div_ceil(4), 1),
                block: 128,
                shared_bytes: 0,
            };
            let bytes = p.tokens * width * 8;
            let estimate = self.estimate(Place::Device, bytes, p.tokens * width * 8, false);
            p.push(
                &format!("{name}.rope"),
                ("rope_append", index),
                launch,
                given,
                estimate,
            );
            let mut defines = common.to_vec();
            defines.extend([("GROUP_Q", group), ("SOFTCAP", softcap)]);
            let index = self.variant("attention_prefill", &defines);
            let given = [
                shared,
                scores,
                vec![("qkv", qkv), ("scalars", self.scalars(p))],
            ]
            .concat();
            // 64 queries, and two tiles of keys and values.
            let dim = a.head_dim.next_multiple_of(16);
            let keys = if dim <= 128 { 64 } else { 32 };
            let launch = Launch {
                grid: grid(p.tokens.div_ceil(64), a.heads, 1),
                block: 128,
                shared_bytes: u32::try_from(2 * (2 * keys + 64) * (dim + 8)).unwrap_or(u32::MAX),
            };
            let flops = 4 * p.tokens * seen * a.heads * a.head_dim;
            let estimate = self.estimate(
                Place::Device,
                seen * each + p.tokens * width * 8,
                flops,
                true,
            );
            p.push(name, ("attention_prefill", index), launch, given, estimate);
            return Ok(());
        }
        // A block for each multiprocessor; 128 keys are what its warps take at a time.
        let wanted = u64::from(self.options.target.sms) / (a.kv_heads * p.tokens).max(1);
        let splits = wanted.min(seen.div_ceil(128)).clamp(1, 64);
        let mut defines = common.to_vec();
        defines.extend([
            ("GROUP_Q", group),
            ("QK_NORM", i64::from(a.norms.is_some())),
            ("ROPE", rope),
            ("SOFTCAP", softcap),
            ("SPLITS", i64::try_from(splits).unwrap_or(1)),
        ]);
        let index = self.variant("attention_decode", &defines);
        let partial = match splits {
            1 => Value::Null,
            _ => {
                let dims = [p.tokens, a.heads, splits, a.head_dim + 2];
                p.buffer(&format!("{name}.partial"), "f32", &dims)
            }
        };
        let counter = Value::at("counters", self.counters * 4);
        self.counters += (p.tokens * a.kv_heads).next_multiple_of(64);
        let own = vec![
            ("qkv", qkv),
            ("positions", Value::buffer("positions")),
            ("partial", partial),
            ("counter", counter),
        ];
        let given = [shared, rotated, scores, own].concat();
        let launch = Launch {
            grid: grid(a.kv_heads, splits, p.tokens),
            block: 256,
            shared_bytes: 0,
        };
        let bytes = p.tokens * (seen * each + width * 4);
        let flops = 4 * p.tokens * seen * a.heads * a.head_dim;
        let estimate = self.estimate(Place::Device, bytes, flops, false);
        let heads = cost::Heads {
            group: a.heads / a.kv_heads,
            dim: a.head_dim,
            keys: seen.div_ceil(splits),
            quantized: quantized == 1,
        };
        let bytes_us = estimate.us - self.options.target.launch_us;
        let estimate = cost::attention(estimate, bytes_us, heads);
        p.push(name, ("attention_decode", index), launch, given, estimate);
        Ok(())
    }

    /// Bytes of a position's keys and values.
    fn position_bytes(&self, a: &Attention) -> u64 {
        let head = match self.options.kv {
            KvFormat::F16 => a.head_dim * 2,
            KvFormat::Q8 => a.head_dim + 2 * a.head_dim.div_ceil(32),
        };
        2 * a.kv_heads * head
    }
}
