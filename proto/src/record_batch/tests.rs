//! Batches as clients send them, and as no client should.

use super::*;

fn batch(records: usize) -> BatchBuilder {
    let mut builder = BatchBuilder::new();
    for n in 0..records {
        builder
            .push(1_000 + n as i64, Some(b"key"), Some(b"value"), &[])
            .unwrap();
    }
    builder
}

fn check(batch: &Bytes) -> Result<BatchHeader, BatchError> {
    validate(batch, &BatchLimits::size(1 << 20))
}

/// Changes bytes of a valid batch and makes its checksum right again.
fn forge(batch: &Bytes, at: usize, bytes: &[u8]) -> Bytes {
    let mut forged = batch.to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = checksum(&forged);
    forged[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(forged)
}

#[test]
fn what_the_builder_writes_is_accepted() {
    let bytes = batch(3).producer(9, 1, i32::MAX).build().unwrap();
    let header = check(&bytes).unwrap();
    assert_eq!(header.size(), bytes.len());
    assert_eq!(
        (header.base_timestamp, header.max_timestamp),
        (1_000, 1_002)
    );
    assert_eq!((header.record_count, header.next_offset()), (3, 3));
    assert_eq!(header.last_sequence(), 1, "sequence numbers wrap to zero");
}

#[test]
fn a_flipped_bit_is_a_wrong_checksum() {
    let bytes = batch(2).build().unwrap();
    for at in [21, 30, 57, bytes.len() - 1] {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        let error = check(&Bytes::from(flipped)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::CorruptMessage, "{error}");
    }
}

#[test]
fn trap_17_exactly_one_whole_batch_is_expected() {
    let one = batch(1).build().unwrap();
    let two = Bytes::from([one.clone(), one.clone()].concat());
    assert_eq!(check(&two), Err(BatchError::NotAlone));
    assert_eq!(check(&Bytes::new()), Err(BatchError::Missing));
    for cut in 1..one.len() {
        let error = check(&one.slice(..cut)).unwrap_err();
        assert!(
            matches!(error, BatchError::Truncated { .. }),
            "{cut}: {error}"
        );
    }
}

#[test]
fn old_formats_are_named() {
    for (magic, advice) in [(0, "0.11"), (1, "0.11"), (3, "not a format")] {
        let bytes = forge(&batch(1).build().unwrap(), 16, &[magic]);
        let error = check(&bytes).unwrap_err();
        assert_eq!(error, BatchError::Magic(magic as i8));
        assert!(error.to_string().contains(advice), "{error}");
    }
    assert_eq!(BatchError::Magic(1).code(), ErrorCode::InvalidRecord);
    assert_eq!(BatchError::Magic(3).code(), ErrorCode::CorruptMessage);
}

#[test]
fn trap_17_contradictions_in_the_header_are_refused_though_the_checksum_is_right() {
    let good = batch(2).build().unwrap();
    let refusals = [
        (57, vec![0, 0, 0, 3], ErrorCode::InvalidRecord, "count"),
        (57, vec![0, 0, 0, 0], ErrorCode::InvalidRecord, "no records"),
        (
            57,
            vec![0x80, 0, 0, 0],
            ErrorCode::InvalidRecord,
            "negative count",
        ),
        (
            23,
            vec![0x7f, 0xff, 0xff, 0xff],
            ErrorCode::InvalidRecord,
            "last offset delta",
        ),
        (22, vec![0x20], ErrorCode::InvalidRecord, "control"),
        (22, vec![0x40], ErrorCode::InvalidRecord, "delete horizon"),
        (
            22,
            vec![0x10],
            ErrorCode::InvalidRecord,
            "transactional without producer",
        ),
        (22, vec![0x08], ErrorCode::InvalidTimestamp, "append time"),
        (
            22,
            vec![0x05],
            ErrorCode::UnsupportedCompressionType,
            "codec",
        ),
        (
            43,
            vec![0; 8],
            ErrorCode::InvalidRecord,
            "producer id without sequence",
        ),
        (8, vec![0, 0, 0, 1], ErrorCode::CorruptMessage, "length"),
        (
            8,
            vec![0xff; 4],
            ErrorCode::CorruptMessage,
            "negative length",
        ),
    ];
    for (at, bytes, code, what) in refusals {
        let error = check(&forge(&good, at, &bytes)).unwrap_err();
        assert_eq!(error.code(), code, "{what}: {error}");
    }
}

#[test]
fn trap_17_a_topics_limits_are_applied() {
    let bytes = batch(2).compression(Compression::Zstd).build().unwrap();
    let open = BatchLimits::size(bytes.len());
    assert!(validate(&bytes, &open).is_ok());

    let small = BatchLimits::size(bytes.len() - 1);
    assert_eq!(
        validate(&bytes, &small).unwrap_err().code(),
        ErrorCode::MessageTooLarge
    );
    let no_zstd = BatchLimits {
        zstd: false,
        ..open
    };
    let error = validate(&bytes, &no_zstd).unwrap_err();
    assert_eq!(error.code(), ErrorCode::UnsupportedCompressionType);
    let past = BatchLimits {
        timestamp_max: 1_000,
        ..open
    };
    assert_eq!(
        validate(&bytes, &past).unwrap_err().code(),
        ErrorCode::InvalidTimestamp
    );
    let future = BatchLimits {
        timestamp_min: 1_001,
        ..open
    };
    assert_eq!(
        validate(&bytes, &future).unwrap_err().code(),
        ErrorCode::InvalidTimestamp
    );
}

#[test]
fn trap_18_offset_and_epoch_are_patched_without_touching_the_checksum() {
    let bytes = batch(2).build().unwrap();
    let header = patched_header(&bytes, 1 << 40, 7).unwrap();
    let stored = Bytes::from([&header[..], &bytes[HEADER_BYTES..]].concat());
    let patched = check(&stored).unwrap();
    assert_eq!(
        (patched.base_offset, patched.partition_leader_epoch),
        (1 << 40, 7)
    );
    assert_eq!(patched.crc, check(&bytes).unwrap().crc);
}

#[test]
fn trap_18_the_brokers_clock_replaces_every_timestamp() {
    let bytes = batch(3).build().unwrap();
    let stamped = with_log_append_time(&bytes, 5_000);
    let header = BatchHeader::parse(&stamped).unwrap();
    assert!(verify_checksum(&stamped, &header).is_ok());
    assert!(header.attributes.is_log_append_time());
    let records = Records::open(&stamped, 1 << 20).unwrap();
    assert!(
        records
            .iter()
            .all(|record| record.unwrap().timestamp == 5_000)
    );
}

#[test]
fn records_come_back_as_they_went_in() {
    let headers: [(&str, Option<&[u8]>); 3] =
        [("twice", Some(b"1")), ("twice", Some(b"2")), ("null", None)];
    for codec in Compression::ALL {
        let mut builder = BatchBuilder::new().compression(codec).base_offset(50);
        builder.push(i64::MAX - 1, None, Some(b""), &[]).unwrap();
        builder.push(-1, Some(b""), None, &headers).unwrap();
        let bytes = builder.build().unwrap();
        let records = Records::open(&bytes, 1 << 20).unwrap();
        let records: Vec<Record> = records.iter().map(Result::unwrap).collect();

        assert_eq!(
            (records[0].offset, records[1].offset),
            (50, 51),
            "{codec:?}"
        );
        assert_eq!(records[0].timestamp, i64::MAX - 1);
        assert_eq!((records[0].key, records[0].value), (None, Some(&b""[..])));
        assert_eq!((records[1].key, records[1].value), (Some(&b""[..]), None));
        let read: Vec<Header> = records[1].headers.iter().collect();
        assert_eq!(read.len(), 3);
        assert_eq!(
            read[1],
            Header {
                key: b"twice",
                value: Some(b"2")
            }
        );
        assert_eq!(read[2].value, None);
    }
}

#[test]
fn uncompressed_records_share_the_batchs_memory() {
    let bytes = batch(1).build().unwrap();
    let records = Records::open(&bytes, 0).unwrap();
    let value = records.iter().next().unwrap().unwrap().value.unwrap();
    let shared = records.share(value);
    assert_eq!(shared.as_ptr(), value.as_ptr());
    assert_eq!(records.share(b""), Bytes::new());
}

const RULES: RecordRules = RecordRules {
    keys_required: true,
    timestamp_max: i64::MAX,
    timestamp_min: 0,
    output_bytes_max: 1 << 20,
};

#[test]
fn a_look_at_every_record_finds_the_newest() {
    let mut builder = BatchBuilder::new().compression(Compression::Gzip);
    for timestamp in [5, 9, 9, 2] {
        builder.push(timestamp, Some(b"k"), None, &[]).unwrap();
    }
    let summary = validate_records(&builder.build().unwrap(), &RULES).unwrap();
    assert_eq!(
        (summary.max_timestamp, summary.max_timestamp_offset_delta),
        (9, 1)
    );
}

#[test]
fn trap_17_records_without_keys_are_all_named() {
    let mut builder = BatchBuilder::new();
    for key in [None, Some(&b"k"[..]), None] {
        builder.push(1, key, Some(b"v"), &[]).unwrap();
    }
    let bytes = builder.build().unwrap();
    match validate_records(&bytes, &RULES) {
        Err(RecordsError::Keyless { indexes }) => assert_eq!(indexes, [0, 2]),
        other => panic!("{other:?}"),
    }
    assert!(
        validate_records(
            &bytes,
            &RecordRules {
                keys_required: false,
                ..RULES
            }
        )
        .is_ok()
    );
}

#[test]
fn a_count_that_disagrees_with_the_records_is_found() {
    let good = batch(2).build().unwrap();
    let more = forge(&forge(&good, 57, &[0, 0, 0, 3]), 23, &[0, 0, 0, 2]);
    assert!(matches!(
        validate_records(&more, &RULES),
        Err(RecordsError::Malformed { index: 2, .. })
    ));
    let fewer = forge(&forge(&good, 57, &[0, 0, 0, 1]), 23, &[0, 0, 0, 0]);
    assert!(matches!(
        validate_records(&fewer, &RULES),
        Err(RecordsError::Trailing { .. })
    ));
}

#[test]
fn offsets_inside_a_batch_have_no_gaps() {
    let good = batch(2).build().unwrap();
    // length, attributes and timestamp delta take one byte each in front of the first offset delta.
    let gap = forge(&good, HEADER_BYTES + 3, &[2]);
    assert!(matches!(
        validate_records(&gap, &RULES),
        Err(RecordsError::OffsetDelta { index: 0, found: 1 })
    ));
}

#[test]
fn a_fetched_tail_that_was_cut_is_left_out() {
    let one = batch(1).build().unwrap();
    let fetched = [one.as_ref(), one.as_ref(), &one[..one.len() - 1]].concat();
    let whole: Vec<_> = batches(Bytes::from(fetched))
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(whole.len(), 2);
    assert_eq!(whole[1].1, one);
}

#[test]
fn a_batch_of_nothing_cannot_be_built() {
    assert!(matches!(
        BatchBuilder::new().build(),
        Err(BuildError::Empty)
    ));
}
