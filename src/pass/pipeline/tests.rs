use super::*;
use proptest::prelude::*;
use serde_json::json;

fn canonical(text: &str) -> String {
    Pipeline::parse(text)
        .unwrap_or_else(|e| panic!("{text}: {e}"))
        .to_string()
}

#[test]
fn canonical_forms() {
    for (text, expected) in [
        ("lowrank,outlier,int4", "lowrank,outlier,int4"),
        (
            " lowrank { rank = 64,max-rank=8 } , int4{ sym }",
            "lowrank{rank=64 max_rank=8},int4{sym}",
        ),
        ("builtin.module(linear(lowrank,int4))", "lowrank,int4"),
        (
            "layers[0-15, 20](int4),default(@hl4_m)",
            "layers[0-15,20](int4),default(@hl4_m)",
        ),
        (
            "layers(int4),layers[3-](int8)",
            "layers[0-](int4),layers[3-](int8)",
        ),
        ("re:ffn_.*(int4{group=64})", "re:ffn_.*(int4{group=64})"),
        ("re:(q|k)_proj(int4),int8", "re:\"(q|k)_proj\"(int4),int8"),
        ("re:a{1,2}(int4)", "re:\"a{1,2}\"(int4)"),
        ("*.mlp.*_proj(int4)", "*.mlp.*_proj(int4)"),
        ("\"head\"(int8),head(int8)", "\"head\"(int8),head(int8)"),
        (
            "outlier{density=0.5% x=\"a b\\\"\"}",
            "outlier{density=0.5% x=\"a b\\\"\"}",
        ),
        ("a{k=\"\"}", "a{k=\"\"}"),
        ("", ""),
        ("head()", "head()"),
        ("none", ""),
        ("re:a(\"{\"()),re:\"]\"()", "re:a(\"{\"()),re:\"]\"()"),
        ("head(none),int4", "head(),int4"),
    ] {
        assert_eq!(canonical(text), expected, "{text}");
        assert_eq!(canonical(expected), expected);
    }
}

#[test]
fn errors_show_place_and_help() {
    for (text, column, message, help) in [
        ("lowrank,", 9, "after the comma", "remove the comma"),
        ("lowrank{rank=64", 8, "not closed", "}"),
        ("lowrank{rank=}", 14, "needs a value", "quote"),
        ("lowrank{rank=1 rank=2}", 16, "twice", "keep one"),
        ("lowrankrank=32", 12, "found `=`", "braces"),
        ("lowrank(rank=64)", 13, "found `=`", "braces"),
        ("head(int4", 1, "not closed", ")"),
        ("int4)", 5, "found `)`", "remove"),
        ("layers[3-1](int4)", 9, "ends before", "FIRST-LAST"),
        ("layers[x](int4)", 8, "layer number", "layers[0-15,20]"),
        ("layers[99999999999](int4)", 8, "no layer number", ""),
        ("re:[(int4)", 4, "regular expression", "quote"),
        ("@", 2, "preset", "@hl4_m"),
        ("int4 int8", 6, "expected a comma", "commas"),
        ("*.proj", 1, "can't be the name", "scope"),
        ("{a}", 1, "expected a pass", "NAME{key=value}"),
        ("a{=3}", 3, "option's name", "key=value"),
        ("a{k=\"x}", 5, "not closed", "\""),
    ] {
        let error = Pipeline::parse(text).expect_err(text);
        assert_eq!(error.span.column(), column, "{error}");
        assert!(error.message.contains(message), "{error}");
        assert!(error.help.contains(help), "{error}");
        assert!(error.to_string().contains('^'), "{error}");
    }
    let deep = format!("{}int4{}", "head(".repeat(10_000), ")".repeat(10_000));
    assert!(Pipeline::parse(&deep).is_err());
    let deep = format!("{}int4{}", "head(".repeat(40), ")".repeat(40));
    assert!(
        Pipeline::parse(&deep)
            .expect_err("deep")
            .message
            .contains("nested")
    );
    assert!(
        Pipeline::parse(&"a,".repeat(10_0000))
            .expect_err("long")
            .message
            .contains("bytes")
    );
}

#[test]
fn overrides() {
    for (text, expected) in [
        ("attn_v=int8", "attn_v=int8"),
        ("re:.*down_proj=none", "re:.*down_proj=none"),
        ("re:(q|k)_proj$=", "re:\"(q|k)_proj$\"=none"),
        (
            "layers[0-3] = int4{group=32},x",
            "layers[0-3]=int4{group=32},x",
        ),
        ("embeddings=int8", "embeddings=int8"),
        ("\"a=b\"=int8", "\"a=b\"=int8"),
    ] {
        let parsed = Override::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(parsed.to_string(), expected);
        assert_eq!(Override::parse(expected).as_ref(), Ok(&parsed));
    }
    for text in [
        "",
        "attn_v",
        "=int8",
        "linear=int8",
        "attn_v=int8)",
        "re:[=int8",
    ] {
        assert!(Override::parse(text).is_err(), "{text}");
    }
}

#[test]
fn options_become_json() {
    let parsed = Pipeline::parse(
        "p{flag a=64 b=-3 c=0.5% d=1e-3 e=row f=true g=inf h=\"1 2\" i=100% j=nan k=32x l=18446744073709551616}",
    )
    .expect("parses");
    let value = serde_json::Value::Object(parsed.calls()[0].options_json());
    assert_eq!(
        value,
        json!({"flag": true, "a": 64, "b": -3, "c": 0.005, "d": 0.001, "e": "row", "f": true, "g": "inf",
               "h": "1 2", "i": 1.0, "j": "nan", "k": "32x", "l": 18446744073709551616.0})
    );
}

#[derive(schemars::JsonSchema, serde::Deserialize, Debug)]
#[serde(default, deny_unknown_fields)]
#[allow(dead_code)]
struct Sample {
    /// Maximal rank.
    rank: Option<u32>,
    /// Share of entries
    /// kept.
    density: f32,
    residual: Residual,
    group: Group,
}

#[derive(schemars::JsonSchema, serde::Deserialize, serde::Serialize, Debug)]
#[serde(rename_all = "lowercase")]
enum Residual {
    Keep,
    Drop,
}

#[derive(schemars::JsonSchema, serde::Deserialize, serde::Serialize, Debug)]
#[serde(untagged)]
enum Group {
    Size(u32),
    Named(Residual),
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            rank: None,
            density: 0.005,
            residual: Residual::Keep,
            group: Group::Size(32),
        }
    }
}

impl serde::Serialize for Sample {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json!({"rank": self.rank, "density": self.density, "residual": self.residual, "group": self.group})
            .serialize(serializer)
    }
}

fn check(text: &str) -> Result<(), SyntaxError> {
    let schema = schemars::schema_for!(Sample).to_value();
    check_options(Pipeline::parse(text)?.calls()[0], &schema)
}

#[test]
fn options_are_checked_against_the_schema() {
    let schema = schemars::schema_for!(Sample).to_value();
    let docs = option_docs(&schema);
    let names: Vec<_> = docs
        .iter()
        .map(|d| (d.name.as_str(), d.accepts.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("rank", "whole number"),
            ("density", "number"),
            ("residual", "keep | drop"),
            ("group", "whole number | keep | drop")
        ]
    );
    assert_eq!(docs[1].doc, "Share of entries kept.");
    for good in [
        "p",
        "p{rank=3}",
        "p{density=0.5%}",
        "p{residual=drop}",
        "p{group=32}",
        "p{group=keep}",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
    for (bad, part) in [
        ("p{rnk=3}", "did you mean `rank`"),
        (
            "p{zzzz=3}",
            "options of `p`: rank, density, residual, group",
        ),
        ("p{rank=x}", "`rank` takes whole number, not `x`"),
        ("p{rank=-1}", "whole number"),
        ("p{rank}", "not no value"),
        ("p{residual=dorp}", "did you mean `drop`"),
        ("p{group=blue}", "whole number | keep | drop"),
    ] {
        let error = check(bad).expect_err(bad).to_string();
        assert!(error.contains(part), "{bad}: {error}");
    }
}

fn applied(pipeline: &str, overrides: &[&str], site: &Site<'_>) -> String {
    let pipeline = Pipeline::parse(pipeline).expect("parses");
    let overrides: Vec<_> = overrides
        .iter()
        .map(|text| Override::parse(text).expect("parses"))
        .collect();
    let program = Program::new(&pipeline, &overrides).expect("compiles");
    let names: Vec<_> = program
        .steps_for(site)
        .into_iter()
        .map(|s| program.steps()[s].call.to_string())
        .collect();
    names.join(",")
}

#[test]
fn scopes_select_sites() {
    let query = Site::new(
        "model.layers.3.self_attn.q_proj.weight",
        &[SiteKind::Linear],
    );
    let down = Site::new("model.layers.20.mlp.down_proj.weight", &[SiteKind::Linear]);
    let table = Site::new("model.embed_tokens.weight", &[SiteKind::Embedding]);
    let head = Site::new("lm_head.weight", &[SiteKind::Head]);
    let expert = Site::new("model.layers.1.experts.7.w1", &[SiteKind::Expert]);
    let text = "layers[0-15](a),re:down_proj(b),default(c),d,embeddings(e)";
    for (site, expected) in [
        (&query, "a,d"),
        (&down, "b,d"),
        (&table, "e"),
        (&head, ""),
        (&expert, "a,d"),
    ] {
        assert_eq!(applied(text, &[], site), expected, "{}", site.name);
    }
    assert_eq!(applied("default(c),head(a)", &[], &query), "c");
    assert_eq!(
        applied("layers[0-15](q_proj(a),default(b))", &[], &query),
        "a"
    );
    assert_eq!(
        applied("layers[0-15](q_proj(a),default(b))", &[], &expert),
        "b"
    );
    assert_eq!(applied("experts(a),default(b)", &[], &expert), "a");
    assert_eq!(applied("*_proj.weight(a)", &[], &query), "a");
    assert_eq!(applied("*_proj(a)", &[], &query), "");
    let tied = Site::new("embed", &[SiteKind::Embedding, SiteKind::Head]);
    for (text, expected) in [
        ("head(a)", "a"),
        ("embeddings(a)", "a"),
        ("a,default(b)", ""),
    ] {
        assert_eq!(applied(text, &[], &tied), expected);
    }
    for (site, expected) in [(&query, "a"), (&table, "b"), (&head, "b"), (&tied, "b")] {
        assert_eq!(applied("a,vocabulary(b)", &[], site), expected);
    }
    let overrides = ["q_proj=int8", "re:proj=none", "layers[3]=@q4,x"];
    assert_eq!(applied("a", &overrides, &query), "trellis{bits=4},x");
    assert_eq!(applied("a", &overrides, &down), "");
    assert_eq!(applied("a", &["lm_head=int8"], &head), "int8");
}

#[test]
fn scopes_must_match() {
    let sites = [
        Site::new("blk.3.attn_q", &[SiteKind::Linear]),
        Site::new("blk.9.ffn_down", &[SiteKind::Linear]),
    ];
    let check = |text: &str| {
        Program::new(&Pipeline::parse(text).expect("parses"), &[])
            .expect("compiles")
            .check_matches(&sites)
    };
    assert_eq!(
        check("layers[3](a),default(b),attn(c),vocabulary(d)"),
        Ok(())
    );
    for (text, help) in [
        ("layers[40-](a)", "layers 3 to 9"),
        ("embedings(a)", "did you mean `embeddings`"),
        ("head(a)", "no head"),
        ("ffn_dwon(a)", "did you mean `ffn_down`"),
        ("re:zzzz(a)", "blk.3.attn_q"),
    ] {
        let error = check(text).expect_err(text).to_string();
        assert!(error.contains(help), "{error}");
    }
    assert!(
        Program::new(&Pipeline::parse("@hl4m").expect("parses"), &[])
            .expect_err("no")
            .help
            .contains("hl4_m")
    );
}

#[test]
fn layers_are_read_from_names() {
    for (name, layer) in [
        ("model.layers.12.mlp.up_proj.weight", Some(12)),
        ("/encoder/layer.3/attention/MatMul", Some(3)),
        ("h.0.attn.c_attn", Some(0)),
        ("blk.7.attn_q", Some(7)),
        ("model.layers.4.block_sparse_moe.experts.7.w1", Some(4)),
        ("onnx::MatMul_1234", None),
        ("lm_head.weight", None),
        ("", None),
    ] {
        assert_eq!(layer_of(name), layer, "{name}");
    }
}

#[test]
fn presets_parse_and_are_not_nested() {
    for preset in preset::PRESETS {
        let parsed = Pipeline::parse(preset.pipeline).expect(preset.name);
        assert_eq!(preset::expand(&parsed), Ok(parsed.clone()));
    }
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let range = (0u32..99, proptest::option::of(0u32..99)).prop_map(|(first, more)| LayerRange {
        first,
        last: more.map(|more| first + more),
    });
    prop_oneof![
        proptest::collection::vec(range, 1..4).prop_map(Scope::Layers),
        "[a-z(){}\\[\\]|.*+?$^\\\\=,\" -]{1,12}"
            .prop_map(|text| match select::compile(&text) {
                Ok(_) => text,
                // No filter: long runs would end at its limit of rejections.
                Err(_) => regex::escape(&text),
            })
            .prop_map(Scope::Regex),
        "[ -~é]{1,10}".prop_map(Scope::Name),
        Just(Scope::Embeddings),
        Just(Scope::Head),
        Just(Scope::Experts),
        Just(Scope::Vocabulary),
        Just(Scope::Default),
    ]
}

fn any_call() -> impl Strategy<Value = Item> {
    let option = ("[a-z][a-z0-9_]{0,6}", proptest::option::of("\\PC{0,8}"));
    (
        "[a-z][a-z0-9_.-]{0,8}",
        proptest::collection::vec(option, 0..4),
    )
        .prop_map(|(name, pairs)| {
            let mut options: Vec<PassOption> = Vec::new();
            for (key, value) in pairs {
                if options.iter().all(|earlier| earlier.key != key) {
                    options.push(PassOption {
                        key,
                        value,
                        span: Span::none(),
                    });
                }
            }
            Item::Pass(PassCall {
                name,
                options,
                span: Span::none(),
            })
        })
}

fn any_pipeline() -> impl Strategy<Value = Pipeline> {
    let leaf = prop_oneof![
        4 => any_call(),
        1 => "[a-z0-9_]{1,6}".prop_map(|name| Item::Preset { name, span: Span::none() }),
    ];
    let item = leaf.prop_recursive(4, 24, 4, |inner| {
        (any_scope(), proptest::collection::vec(inner, 0..4)).prop_map(|(scope, items)| {
            Item::Scope {
                scope,
                body: Pipeline { items },
                span: Span::none(),
            }
        })
    });
    proptest::collection::vec(item, 0..5).prop_map(|items| Pipeline { items })
}

proptest! {
    #[test]
    fn printing_and_parsing_agree(pipeline in any_pipeline()) {
        let text = pipeline.to_string();
        prop_assert_eq!(Pipeline::parse(&text).map_err(|e| e.to_string()), Ok(pipeline), "{}", text);
    }

    #[test]
    fn overrides_print_and_parse_alike(scope in any_scope(), body in any_pipeline()) {
        let one = Override { scope, body, span: Span::none() };
        let text = one.to_string();
        prop_assert_eq!(Override::parse(&text).map_err(|e| e.to_string()), Ok(one), "{}", text);
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,60}") {
        let _ = Pipeline::parse(&text).map_err(|e| e.to_string());
        let _ = Override::parse(&text).map_err(|e| e.to_string());
    }

    #[test]
    fn near_pipelines_are_parsed_or_refused(text in "[a-c0-9{}()\\[\\],=\"\\\\@%: *\n-]{0,40}|re:[ -~]{0,20}") {
        if let Ok(parsed) = Pipeline::parse(&text) {
            let printed = parsed.to_string();
            prop_assert_eq!(Pipeline::parse(&printed).map_err(|e| e.to_string()), Ok(parsed), "{}", printed);
        }
        let _ = Override::parse(&text).map_err(|e| e.to_string());
    }
}
