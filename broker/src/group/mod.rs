//! (stands in until the group room lands)
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
#[derive(Debug)]
pub struct Coordinator;
pub fn partition_of(group: &str, partitions: usize) -> i32 {
    let hash = group
        .encode_utf16()
        .fold(0i32, |h, c| h.wrapping_mul(31).wrapping_add(i32::from(c)));
    ((hash & 0x7fff_ffff) as usize % partitions.max(1)) as i32
}
