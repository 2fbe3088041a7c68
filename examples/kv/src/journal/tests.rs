//! Tests of the journal.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Arrive(usize),
    Consume(usize),
    Reply(usize),
    Sent(usize),
    Save,
    TakeOver(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![3 => 0..100_usize, 2 => 0..200_000_usize];
    prop_oneof![
        len().prop_map(Step::Arrive),
        len().prop_map(Step::Consume),
        len().prop_map(Step::Reply),
        len().prop_map(Step::Sent),
        Just(Step::Save),
        any::<bool>().prop_map(Step::TakeOver),
    ]
}

fn journal_entries(store: &mut Store) -> usize {
    let mut count = 0;
    store.scan_journal(&mut |_, _| count += 1).unwrap();
    count
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn whoever_takes_over_has_exactly_the_bytes_under_way(steps in proptest::collection::vec(step(), 1..40)) {
        let mut store = Store::create(64 << 20).unwrap();
        let mut under_way = UnderWay::default();
        let (mut input, mut output) = (Vec::new(), Vec::new());
        let mut counter = 0_u32;
        let mut fill = |len: usize| -> Vec<u8> {
            (0..len).map(|_| { counter = counter.wrapping_mul(1_664_525).wrapping_add(1); (counter >> 24) as u8 }).collect()
        };
        for step in steps {
            match step {
                Step::Arrive(len) => {
                    let bytes = fill(len);
                    under_way.input.tail().extend_from_slice(&bytes);
                    input.extend(bytes);
                }
                Step::Reply(len) => {
                    let bytes = fill(len);
                    under_way.output.tail().extend_from_slice(&bytes);
                    output.extend(bytes);
                }
                Step::Consume(len) => {
                    let len = len.min(input.len());
                    under_way.input.consume(len);
                    input.drain(..len);
                }
                Step::Sent(len) => {
                    let len = len.min(output.len());
                    under_way.output.consume(len);
                    output.drain(..len);
                }
                Step::Save => under_way.save(&mut store, 20).unwrap(),
                Step::TakeOver(closing) => {
                    under_way.closing = closing;
                    under_way.save(&mut store, 20).unwrap();
                    let closing = under_way.closing && !(input.is_empty() && output.is_empty());
                    let fd = store.into_fd().unwrap();
                    store = Store::from_fd(fd, 64 << 20).unwrap();
                    let mut inheritance = Inheritance::read(&mut store).unwrap();
                    under_way = inheritance.take(20).unwrap();
                    inheritance.erase_rest(&mut store).unwrap();
                    prop_assert_eq!(under_way.closing, closing);
                }
            }
            prop_assert_eq!(under_way.input.bytes(), &input[..]);
            prop_assert_eq!(under_way.output.bytes(), &output[..]);
        }
        under_way.save(&mut store, 20).unwrap();
        if input.is_empty() && output.is_empty() {
            prop_assert_eq!(journal_entries(&mut store), 0);
        }
        under_way.erase(&mut store, 20).unwrap();
        prop_assert_eq!(journal_entries(&mut store), 0);
        store.check().unwrap();
    }
}

#[test]
fn what_is_left_of_connections_that_did_not_come_back_is_erased() {
    let mut store = Store::create(64 << 20).unwrap();
    for token in [30, 31] {
        let mut under_way = UnderWay::default();
        under_way.input.tail().extend_from_slice(&[1; 100_000]);
        under_way.save(&mut store, token).unwrap();
    }
    let mut inheritance = Inheritance::read(&mut store).unwrap();
    assert_eq!(inheritance.take(31).unwrap().input.len(), 100_000);
    inheritance.erase_rest(&mut store).unwrap();
    assert_eq!(journal_entries(&mut store), 3, "the head and two chunks of the one that came back");
}

#[test]
fn pieces_that_do_not_fit_are_refused_and_can_be_erased() {
    let mut store = Store::create(64 << 20).unwrap();
    let mut under_way = UnderWay::default();
    under_way.input.tail().extend_from_slice(&[1; 200_000]);
    under_way.save(&mut store, 30).unwrap();
    store.delete_journal(&key(30, Direction::Input as u8, 1)).unwrap();
    let mut inheritance = Inheritance::read(&mut store).unwrap();
    assert!(matches!(inheritance.take(30), Err(StoreError::Corrupt(_))));
    inheritance.erase_rest(&mut store).unwrap();
    assert_eq!(journal_entries(&mut store), 0);
}
