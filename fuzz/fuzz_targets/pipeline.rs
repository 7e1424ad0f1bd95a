//! Pipelines: the first line is one, every further line a `-t`. What parses comes back from its print.
#![no_main]

use hlrc::ir::site::layer_of;
use hlrc::pass::manager::{Schedule, canonical};
use hlrc::pass::pipeline::preset::{expand, expand_override};
use hlrc::pass::pipeline::{Override, Pipeline, Program, Site, SiteKind};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 4] = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.17.mlp.experts.3.down_proj",
    "model.embed_tokens",
    "lm_head",
];

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.split('\n');
    let pipeline = parsed(lines.next().unwrap_or_default());
    let overrides: Vec<Override> = lines.filter_map(overriding).collect();
    let Some(pipeline) = pipeline else {
        return;
    };
    if let Ok(canonical) = canonical(&pipeline) {
        assert_eq!(parsed(&canonical.to_string()).as_ref(), Some(&canonical));
    }
    let (Ok(pipeline), Ok(overrides)) = (
        expand(&pipeline),
        overrides
            .iter()
            .map(expand_override)
            .collect::<Result<Vec<_>, _>>(),
    ) else {
        return;
    };
    let Ok(program) = Program::new(&pipeline, &overrides) else {
        return;
    };
    let kinds = [
        SiteKind::Linear,
        SiteKind::Expert,
        SiteKind::Embedding,
        SiteKind::Head,
    ];
    let mut sites = Vec::new();
    for (index, name) in NAMES.iter().enumerate() {
        let mut site = Site::new(name, &kinds[index..=index]);
        site.layer = layer_of(name);
        for step in program.steps_for(&site) {
            assert!(step < program.steps().len());
        }
        sites.push(site);
    }
    let _ = program.check_matches(&sites);
    for stop in [None, Some("int4")] {
        if let Err(error) = Schedule::new(&pipeline, &overrides, stop) {
            assert!(!error.to_string().is_empty());
        }
    }
});

fn parsed(text: &str) -> Option<Pipeline> {
    match Pipeline::parse(text) {
        Ok(pipeline) => {
            let shown = pipeline.to_string();
            assert_eq!(Pipeline::parse(&shown).as_ref(), Ok(&pipeline), "{shown}");
            Some(pipeline)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn overriding(text: &str) -> Option<Override> {
    match Override::parse(text) {
        Ok(one) => {
            let shown = one.to_string();
            assert_eq!(Override::parse(&shown).as_ref(), Ok(&one), "{shown}");
            Some(one)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}
