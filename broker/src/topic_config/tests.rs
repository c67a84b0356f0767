use super::*;
use logd_proto::record_batch::{BatchBuilder, validate_records};

fn asked(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn values(config: &TopicConfig) -> BTreeMap<String, String> {
    let described = config.described().into_iter();
    described
        .map(|d| (d.name.clone(), d.value().to_owned()))
        .collect()
}

fn parse(pairs: &[(&str, &str)]) -> Result<TopicConfig, ConfigError> {
    TopicConfig::parse(&asked(pairs))
}

#[test]
fn the_table_is_sorted_and_takes_its_own_defaults() {
    assert!(
        TABLE.is_sorted_by_key(|row| row.name),
        "looked up by bisection"
    );
    for row in TABLE {
        assert_eq!(
            row.check(row.default).as_deref(),
            Ok(row.default),
            "{}",
            row.name
        );
    }
}

#[test]
fn what_a_topic_reports_can_be_asked_for_again() {
    let config = parse(&[
        ("segment.bytes", "1048576"),
        ("cleanup.policy", "compact, delete"),
    ])
    .unwrap();
    let reported = values(&config);
    assert_eq!(reported["cleanup.policy"], "compact,delete");
    assert_eq!(values(&TopicConfig::parse(&reported).unwrap()), reported);
}

#[test]
fn segments_and_retention_come_from_the_topic() {
    let config = parse(&[
        ("segment.bytes", "1048576"),
        ("segment.ms", "60000"),
        ("retention.ms", "5000"),
        ("retention.bytes", "1000000"),
    ])
    .unwrap();
    assert_eq!(config.log_options().segment_bytes, 1 << 20);
    assert_eq!(config.log_options().segment_ms, Some(60_000));
    let policy = config.retention_policy().unwrap();
    assert_eq!(
        (policy.max_age_ms, policy.max_bytes),
        (Some(5_000), Some(1_000_000))
    );
}

#[test]
fn nothing_expires_where_nothing_may() {
    for keeps in [
        &[("retention.ms", "-1")][..],
        &[("cleanup.policy", "compact")],
        &[("cleanup.policy", "")],
    ] {
        assert_eq!(parse(keeps).unwrap().retention_policy(), None, "{keeps:?}");
    }
    assert!(
        TopicConfig::default().retention_policy().is_some(),
        "a week by default"
    );
}

#[test]
fn the_brokers_defaults_hold_where_a_topic_says_nothing() {
    let broker = TopicDefaults {
        retention_ms: 1_000,
        segment_bytes: 1 << 20,
        ..TopicDefaults::default()
    };
    let config = parse(&[("retention.ms", "2000")]).unwrap().over(&broker);
    assert_eq!(config.retention_policy().unwrap().max_age_ms, Some(2_000));
    assert_eq!(config.log_options().segment_bytes, 1 << 20);
    assert_eq!(values(&config)["segment.bytes"], "1048576");
}

#[test]
fn unknown_names_are_refused_with_the_nearest_known_one() {
    let error = parse(&[("retention.milliseconds", "1")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Unknown topic config name: retention.milliseconds (did you mean retention.ms?)"
    );
    let error = parse(&[("colour", "blue")]).unwrap_err();
    assert_eq!(error.to_string(), "Unknown topic config name: colour");
    let error = parse(&[("message.timestamp.difference.max.ms", "1")]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("message.timestamp.before.max.ms"),
        "{error}"
    );
}

#[test]
fn values_out_of_bounds_say_what_is_taken() {
    let error = parse(&[("retention.ms", "-2")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "Invalid value \"-2\" for configuration retention.ms: a whole number from -1 is needed"
    );
    for (name, value) in [
        ("segment.bytes", "12"),
        ("max.message.bytes", "1073741824"),
        ("cleanup.policy", "shred"),
        ("message.timestamp.type", "createtime"),
        ("min.cleanable.dirty.ratio", "1.5"),
        ("min.insync.replicas", "0"),
        ("flush.ms", "soon"),
        ("compression.type", "lzma"),
        ("compression.zstd.level", "23"),
        ("compression.gzip.level", "0"),
    ] {
        let refused = parse(&[(name, value)]).unwrap_err();
        assert!(
            matches!(refused, ConfigError::Invalid { .. }),
            "{name}={value}: {refused}"
        );
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_with_the_reason() {
    let error = parse(&[("preallocate", "false")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "preallocate=false cannot be honoured by this version (it takes only true): segments are always \
         preallocated, so that a full disk is noticed early"
    );
    for (name, value) in [
        ("unclean.leader.election.enable", "true"),
        ("remote.storage.enable", "true"),
        ("segment.jitter.ms", "5"),
    ] {
        let refused = parse(&[(name, value)]).unwrap_err();
        assert!(
            matches!(refused, ConfigError::NotHonoured { .. }),
            "{name}={value}: {refused}"
        );
    }
}

#[test]
fn more_in_sync_replicas_than_a_majority_cannot_be_promised() {
    let config = parse(&[("min.insync.replicas", "2")]).unwrap();
    assert_eq!(config.check_replicas(3), Ok(()));
    let error = config.check_replicas(1).unwrap_err().to_string();
    assert!(
        error.contains("min.insync.replicas=2") && error.contains("here 1"),
        "{error}"
    );
}

#[test]
fn timestamps_are_bounded_unless_the_broker_stamps() {
    let now = 1_000_000;
    let config = parse(&[
        ("message.timestamp.after.max.ms", "10"),
        ("message.timestamp.before.max.ms", "20"),
    ])
    .unwrap();
    assert_eq!(
        (config.timestamp_min(now), config.timestamp_max(now)),
        (now - 20, now + 10)
    );
    let stamped = parse(&[
        ("message.timestamp.type", "LogAppendTime"),
        ("message.timestamp.after.max.ms", "10"),
    ])
    .unwrap();
    assert!(stamped.log_append_time());
    assert_eq!(stamped.timestamp_max(now), i64::MAX);
    assert!(
        TopicConfig::default().timestamp_min(now) < 0,
        "any past is fine by default"
    );
}

#[test]
fn a_compacted_topic_needs_keys_and_others_do_not() {
    let rules = parse(&[("cleanup.policy", "compact")])
        .unwrap()
        .record_rules(0);
    let mut batch = BatchBuilder::new();
    batch.push(5, Some(b"k"), Some(b"v"), &[]).unwrap();
    batch.push(5, None, Some(b"v"), &[]).unwrap();
    let batch = batch.build().unwrap();
    assert!(validate_records(&batch, &TopicConfig::default().record_rules(0)).is_ok());
    let error = validate_records(&batch, &rules).unwrap_err();
    assert_eq!(
        error.to_string(),
        "1 records without a key in a compacted topic"
    );
}

#[test]
fn a_topic_may_say_how_its_batches_are_stored_and_how_hard_to_try() {
    let stored = |asked: &[(&str, &str)]| parse(asked).unwrap().stored_as();
    let codec = |compression, level| Some(Codec { compression, level });
    assert_eq!(stored(&[]), None, "as they were sent");
    assert_eq!(
        stored(&[("compression.type", "gzip")]),
        codec(Compression::Gzip, None)
    );
    let levels = [
        ("compression.gzip.level", "9"),
        ("compression.zstd.level", "-7"),
    ];
    let with = |word| stored(&[("compression.type", word), levels[0], levels[1]]);
    assert_eq!(with("gzip"), codec(Compression::Gzip, Some(9)));
    assert_eq!(with("zstd"), codec(Compression::Zstd, Some(-7)));
    assert_eq!(with("uncompressed"), codec(Compression::None, None));
    assert_eq!(with("producer"), None);
}
