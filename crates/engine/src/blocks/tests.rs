use super::*;

fn blocks(windows: &[Option<usize>], memory: usize) -> Blocks {
    Blocks::new(&KvLayout::new(1, 16, windows), KvType::F16, memory)
}

/// Bytes of a block of one layer in [`blocks`].
const BLOCK: usize = 2 * KV_BLOCK * 16 * 2;

/// Physical blocks that are handed out by now.
fn provided(blocks: &mut Blocks) -> usize {
    let changes = blocks.take_changes();
    let count = |f: fn(&Change) -> bool| changes.iter().filter(|c| f(c)).count();
    count(|c| matches!(c, Change::Provide(..))) - count(|c| matches!(c, Change::Release(..)))
}

fn tokens(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed) % 1000).collect()
}

/// A sequence that is computed and published at once.
fn compute(b: &mut Blocks, tokens: &[u32]) -> Held {
    let found = b.find(Space::default(), tokens, &[]);
    let mut held = b.reuse(Space::default(), tokens, found.blocks);
    b.extend(&mut held, found.blocks * KV_BLOCK, tokens.len()).unwrap_or_else(|e| panic!("{e:?}"));
    b.publish(&mut held, tokens, tokens.len());
    held
}

#[test]
fn a_window_needs_few_blocks_and_never_loses_what_is_in_sight() {
    for window in [1, 31, 32, 33, 100, 512] {
        for chunk in [1, 7, 32, 200] {
            let mut b = blocks(&[Some(window)], usize::MAX);
            let mut held = b.hold_nothing(Space::default());
            let mut owner = HashMap::new();
            let mut position = 0;
            while position < 2000 {
                assert_eq!(b.extend(&mut held, position, position + chunk), Ok(()));
                let table = &held.tables[0].blocks;
                for p in position..position + chunk {
                    owner.insert(table[p / KV_BLOCK], p / KV_BLOCK);
                }
                for p in (position + 1).saturating_sub(window)..position + chunk {
                    let block = table[p / KV_BLOCK];
                    assert_eq!(owner[&block], p / KV_BLOCK, "{window} {chunk} {p}");
                }
                position += chunk;
            }
            let count = provided(&mut b);
            assert!(count * BLOCK <= b.needs(0, position, chunk), "{window} {chunk}: {count}");
            assert!(count <= (window + chunk).div_ceil(KV_BLOCK) + 1);
        }
    }
}

#[test]
fn rewinding_keeps_sight_or_says_no() {
    let mut b = blocks(&[Some(64)], usize::MAX);
    let mut held = b.hold_nothing(Space::default());
    assert_eq!(b.extend(&mut held, 0, 200), Ok(()));
    assert!(b.rewind(&mut held, 150));
    assert_eq!(b.extend(&mut held, 150, 400), Ok(()));
    assert_eq!(b.extend(&mut held, 400, 401), Ok(()));
    assert!(!b.rewind(&mut held, 100), "positions 37 to 100 have left the window");
    let mut b = blocks(&[None], usize::MAX);
    let mut held = b.hold_nothing(Space::default());
    assert_eq!(b.extend(&mut held, 0, 400), Ok(()));
    assert!(b.rewind(&mut held, 3));
    assert_eq!(held.tables[0].blocks.len(), 1);
    b.release(held);
    assert_eq!(b.used(), 0);
}

#[test]
fn a_prefix_is_found_by_its_tokens_and_shared() {
    let mut b = blocks(&[None], 100 * BLOCK);
    let text = tokens(1, 100);
    let first = compute(&mut b, &text);
    assert_eq!(b.find(Space::default(), &text, &[]).blocks, 3);
    assert_eq!(
        b.find(Space::default(), &text[..96], &[]).blocks,
        2,
        "something must be left to compute"
    );
    let mut other = text.clone();
    other[40] += 1;
    assert_eq!(b.find(Space::default(), &other, &[]).blocks, 1);
    other[0] += 1;
    assert_eq!(b.find(Space::default(), &other, &[]).blocks, 0);
    let second = compute(&mut b, &text);
    assert_eq!(first.tables[0].blocks[..3], second.tables[0].blocks[..3]);
    assert_ne!(first.tables[0].blocks[3], second.tables[0].blocks[3], "parts are not shared");
    assert_eq!(b.used(), 5 * BLOCK);
    b.release(first);
    b.release(second);
    assert_eq!((b.used(), b.cached()), (0, 3 * BLOCK));
    assert_eq!(b.find(Space::default(), &text, &[]).idle_bytes, 3 * BLOCK);
}

#[test]
fn two_that_computed_the_same_keep_one() {
    let mut b = blocks(&[None, Some(64)], 100 * BLOCK);
    let text = tokens(2, 64);
    let mut held: Vec<Held> = (0..2).map(|_| b.hold_nothing(Space::default())).collect();
    for h in &mut held {
        assert_eq!(b.extend(h, 0, 64), Ok(()));
    }
    assert_eq!(b.used(), 8 * BLOCK);
    for h in &mut held {
        b.publish(h, &text, 64);
    }
    assert_eq!(b.used(), 4 * BLOCK);
    held.into_iter().for_each(|h| b.release(h));
    assert_eq!(b.used(), 0);
}

#[test]
fn the_longest_unused_goes_first_and_the_end_before_the_beginning() {
    let mut b = blocks(&[None], 6 * BLOCK);
    let texts = [tokens(1, 96), tokens(2, 96), tokens(3, 64)];
    for text in &texts[..2] {
        let held = compute(&mut b, text);
        b.release(held);
    }
    let held = compute(&mut b, &texts[2]);
    let found = |b: &Blocks, text: &[u32]| {
        let more: Vec<u32> = text.iter().copied().chain([5]).collect();
        b.find(Space::default(), &more, &[]).blocks
    };
    assert_eq!(found(&b, &texts[0]), 1, "its last two blocks were taken");
    assert_eq!(found(&b, &texts[1]), 3);
    assert_eq!(found(&b, &texts[2]), 2);
    let mut more = b.hold_nothing(Space::default());
    assert_eq!(b.extend(&mut more, 0, 4 * KV_BLOCK), Ok(()));
    assert_eq!(b.extend(&mut more, 4 * KV_BLOCK, 5 * KV_BLOCK), Err(Full));
    assert_eq!(provided(&mut b), 6);
    b.release(held);
    assert_eq!(b.extend(&mut more, 4 * KV_BLOCK, 5 * KV_BLOCK), Ok(()));
    b.release(more);
    assert_eq!((b.used(), provided(&mut b)), (0, 0));
}

#[test]
fn windows_are_kept_where_prefixes_are_looked_for() {
    let window = 64;
    let mut b = blocks(&[None, Some(window)], 1000 * BLOCK);
    let text = tokens(7, 20 * KV_BLOCK);
    let mut held = b.hold_nothing(Space::default());
    held.keep(10);
    for i in 0..20 {
        assert_eq!(b.extend(&mut held, i * KV_BLOCK, (i + 1) * KV_BLOCK), Ok(()));
        b.publish(&mut held, &text, (i + 1) * KV_BLOCK);
    }
    let found =
        |b: &Blocks, blocks: usize| b.find(Space::default(), &text[..blocks * KV_BLOCK + 1], &[]);
    assert_eq!(found(&b, 15).blocks, 15, "as long as there is room all windows are there");
    // Others take the room: first the windows that nobody is expected to look for.
    b.memory = b.resident;
    let mut other = b.hold_nothing(Space::default());
    while b.idle.first().is_some_and(|i| !i.0) {
        let start = other.tables[1].blocks.len() * KV_BLOCK;
        assert_eq!(b.extend(&mut other, start, start + KV_BLOCK), Ok(()));
    }
    assert_eq!(found(&b, 10).blocks, 10);
    assert_eq!(found(&b, 15), Match { blocks: 10, known: 15, idle_bytes: 0 });
    b.release(other);
    b.release(held);
    assert_eq!(b.used(), 0);
}
