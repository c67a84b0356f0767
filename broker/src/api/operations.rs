//! "Authorized operations": what the one who asks may do with a resource, as bits of Kafka's operation numbers.
//!
//! Invariant: while there is no authorizer everybody may do whatever there is to do with that kind of resource.
//! Not here: deciding who may do what.

/// Nobody asked, or the resource could not be found.
pub const UNKNOWN: i32 = i32::MIN;

/// Read, write, create, delete, alter, describe, and describe and alter configurations.
pub const OF_TOPIC: i32 = bits(&[3, 4, 5, 6, 7, 8, 10, 11]);

/// Read, delete and describe.
pub const OF_GROUP: i32 = bits(&[3, 6, 8]);

/// Create, alter, describe, cluster action, describe and alter configurations, idempotent write.
pub const OF_CLUSTER: i32 = bits(&[5, 7, 8, 9, 10, 11, 12]);

/// `all`, if somebody asked.
pub fn told(asked: bool, all: i32) -> i32 {
    if asked { all } else { UNKNOWN }
}

const fn bits(numbers: &[u8]) -> i32 {
    let mut bits = 0;
    let mut at = 0;
    while at < numbers.len() {
        bits |= 1 << numbers[at];
        at += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_bits_and_are_told_only_when_asked_for() {
        assert_eq!(OF_TOPIC, 0b1101_1111_1000);
        assert_eq!(OF_CLUSTER, 0b1_1111_1010_0000);
        assert_eq!(told(true, OF_GROUP), 0b1_0100_1000);
        assert_eq!(told(false, OF_GROUP), i32::MIN);
    }
}
