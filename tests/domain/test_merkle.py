"""Merkle trees: the published vectors, proofs against a second way of computing them, tiles, and refusals. [SEQ-11, AUD-18]"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import pytest

from app.domain.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    CompletedNode,
    Frontier,
    Tile,
    TileTree,
    check_consistency,
    check_inclusion,
    check_leaf_in_tiles,
    consistency_nodes,
    consistency_proof,
    inclusion_nodes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    restricted_hash,
    root_from_nodes,
    root_nodes,
    salted_leaf,
    tile_root,
    tiles,
    tree_root,
)
from app.errors import IntegrityBroken, ProofInvalid

# The vectors of Certificate Transparency: eight entries, and the tree hash after each.
ENTRIES: Final = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS: Final = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
N01: Final = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
N1: Final = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
N23: Final = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
N4: Final = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
N45: Final = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
N67: Final = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
N4_7: Final = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
INCLUSIONS: Final = {
    (0, 1): [],
    (0, 8): [N1, N23, N4_7],
    (5, 8): [N4, N67, ROOTS[3]],
    (2, 3): [N01],
    (1, 5): [ROOTS[0], N23, N4],
}
CONSISTENCIES: Final = {
    (1, 1): [],
    (1, 8): [N1, N23, N4_7],
    (6, 8): [N45, N67, ROOTS[3]],
    (2, 5): [N23, N4],
}
SIZES: Final = range(70)
# How many tiles a list of so many leaves has.
TILES: Final = {
    0: 0,
    1: 1,
    2: 1,
    3: 1,
    255: 1,
    256: 1,
    257: 3,
    511: 3,
    512: 3,
    700: 4,
    65_535: 257,
    65_536: 257,
    65_537: 257 + 3,
    66_000: 258 + 2 + 1,
}


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]


def split_root(leaves: Sequence[bytes]) -> bytes:
    """The tree hash written as the RFC defines it, from above."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return node_hash(split_root(leaves[:middle]), split_root(leaves[middle:]))


def grown(leaves: Sequence[bytes]) -> tuple[Frontier, dict[tuple[int, int], bytes]]:
    """A log grown leaf by leaf, and what the storage would hold of it."""
    log, stored = Frontier(), dict[tuple[int, int], bytes]()
    for index, leaf in enumerate(leaves):
        stored[0, index] = leaf
        log, completed = log.append(leaf)
        stored |= {(node.level, node.index): node.hash for node in completed}
    return log, stored


def only(stored: Mapping[tuple[int, int], bytes], places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """What one query for these places answers."""
    assert len(set(places)) == len(places)
    return {place: stored[place] for place in places}


class TestHashing:
    def test_published_tree_hashes(self) -> None:
        """The vectors of Certificate Transparency hold. [SEQ-11]"""
        hashes = [leaf_hash(entry) for entry in ENTRIES]
        assert [tree_root(hashes[: size + 1]).hex() for size in range(8)] == ROOTS
        assert tree_root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()

    def test_domain_separation(self) -> None:
        """Leaf, node and restricted part have first bytes of their own; a salt stands before the content. [AUD-07]"""
        assert node_hash(b"l", b"r") == hashlib.sha256(b"\x01lr").digest()
        assert salted_leaf(b"s" * 32, b"content") == hashlib.sha256(b"\x00" + b"s" * 32 + b"content").digest()
        assert restricted_hash(b"s" * 32, b"part") == hashlib.sha256(b"\x02" + b"s" * 32 + b"part").digest()

    def test_tree_root_is_the_definition(self) -> None:
        """Pairing from below gives the split from above, for every size."""
        leaves = leaves_of(70)
        for size in SIZES:
            assert tree_root(leaves[:size]) == split_root(leaves[:size])


class TestFrontier:
    def test_growth(self) -> None:
        """Every size has the right root and survives being stored; complete nodes are told once. [AUD-18]"""
        leaves, log, told = leaves_of(70), Frontier(), set[tuple[int, int]]()
        for size in SIZES:
            assert log.size == size
            assert log.root() == split_root(leaves[:size])
            assert Frontier.from_bytes(log.to_bytes()) == log
            log, completed = log.append(leaves[size])
            for node in completed:
                start, width = node.index << node.level, 1 << node.level
                assert node == CompletedNode(node.level, node.index, split_root(leaves[start : start + width]))
                assert node.level >= 1
                assert (node.level, node.index) not in told
                told.add((node.level, node.index))
        assert len(told) == sum(70 >> level for level in range(1, 8))

    @pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\x00" * 32, lambda b: b[:5], lambda _: b""])
    def test_stored_form_broken(self, change: Callable[[bytes], bytes]) -> None:
        """A head row that lost or gained bytes stops the log. [AUD-18]"""
        log, _ = grown(leaves_of(7))
        with pytest.raises(ProofInvalid):
            Frontier.from_bytes(change(log.to_bytes()))


class TestProofs:
    @pytest.mark.parametrize("case", INCLUSIONS, ids=str)
    def test_published_inclusion(self, case: tuple[int, int]) -> None:
        """Audit paths of Certificate Transparency are made and accepted."""
        index, size = case
        hashes = [leaf_hash(entry) for entry in ENTRIES]
        _, stored = grown(hashes[:size])
        proof = inclusion_proof(index, size, only(stored, inclusion_nodes(index, size)))
        assert [step.hex() for step in proof] == INCLUSIONS[case]
        check_inclusion(index, size, hashes[index], proof, bytes.fromhex(ROOTS[size - 1]))

    @pytest.mark.parametrize("case", CONSISTENCIES, ids=str)
    def test_published_consistency(self, case: tuple[int, int]) -> None:
        """Consistency proofs of Certificate Transparency are made and accepted."""
        old, new = case
        _, stored = grown([leaf_hash(entry) for entry in ENTRIES[:new]])
        proof = consistency_proof(old, new, only(stored, consistency_nodes(old, new)))
        assert [step.hex() for step in proof] == CONSISTENCIES[case]
        check_consistency(old, new, bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[new - 1]), proof)

    def test_every_inclusion(self) -> None:
        """Each entry of each size is proved from stored nodes, and at no other index, size, leaf or root."""
        leaves = leaves_of(34)
        _, stored = grown(leaves)
        for size in range(1, 34):
            root = split_root(leaves[:size])
            for index in range(size):
                proof = inclusion_proof(index, size, only(stored, inclusion_nodes(index, size)))
                check_inclusion(index, size, leaves[index], proof, root)
                for wrong in (
                    (index, size, leaves[index], proof, split_root(leaves[: size + 1])),
                    (index, size, leaves[index + 1], proof, root),
                    (index, size, leaves[index], (*proof, root), root),
                    (size, size, leaves[index], proof, root),
                    (-1, size, leaves[index], proof, root),
                    ((index + 1) % size, size, leaves[index], proof, root) if size > 1 else (0, 0, root, (), root),
                    (index, size, leaves[index], proof[1:], root) if proof else (0, 2, leaves[0], (), root),
                ):
                    with pytest.raises(ProofInvalid):
                        check_inclusion(*wrong)

    def test_every_consistency(self) -> None:
        """Each pair of sizes is proved from stored nodes, and no other pair of roots. [AUD-18]"""
        leaves = leaves_of(34)
        _, stored = grown(leaves)
        for new in range(34):
            new_root = split_root(leaves[:new])
            for old in range(new + 1):
                old_root = split_root(leaves[:old])
                proof = consistency_proof(old, new, only(stored, consistency_nodes(old, new)))
                check_consistency(old, new, old_root, new_root, proof)
                other = b"\x55" * 32
                wrongs: list[tuple[int, int, bytes, bytes, Sequence[bytes]]] = [
                    (old, new, other, new_root, proof),
                    (old, new, old_root, new_root, (*proof, other)),
                    (new + 1, new, old_root, new_root, proof),
                    (-1, new, old_root, new_root, proof),
                ]
                if old:
                    wrongs.append((old, new, old_root, other, proof))
                if proof:
                    wrongs += [
                        (old, new, old_root, new_root, proof[1:]),
                        (old, new, old_root, new_root, (other, *proof[1:])),
                        (old, new, old_root, new_root, ()),
                    ]
                for wrong in wrongs:
                    with pytest.raises(ProofInvalid):
                        check_consistency(*wrong)

    def test_root_from_nodes(self) -> None:
        """The root of any earlier size comes from stored nodes alone."""
        leaves = leaves_of(34)
        _, stored = grown(leaves)
        for size in range(34):
            assert root_from_nodes(size, only(stored, root_nodes(size))) == split_root(leaves[:size])

    def test_stored_node_missing(self) -> None:
        """A deleted node is an integrity failure that names it, never a shorter proof. [AUD-18]"""
        _, stored = grown(leaves_of(8))
        del stored[1, 3]
        with pytest.raises(IntegrityBroken, match="node 3 of level 1"):
            inclusion_proof(5, 8, stored)

    def test_asking_beyond_the_log(self) -> None:
        """Proofs about entries that do not exist are a caller's error."""
        for index, size in ((0, 0), (3, 3), (-1, 3)):
            with pytest.raises(ValueError, match="no entry"):
                inclusion_nodes(index, size)
        for old, new in ((4, 3), (-1, 3)):
            with pytest.raises(ValueError, match="cannot have grown"):
                consistency_nodes(old, new)


def tiled(leaves: Sequence[bytes]) -> tuple[bytes, dict[tuple[int, int], bytes], Tile | None]:
    """The root, what the storage holds, and the tile that came last."""
    stored, last = dict[tuple[int, int], bytes](), None
    making = tiles(leaves)
    while True:
        try:
            last = next(making)
        except StopIteration as done:
            return done.value, stored, last
        assert (last.level, last.index) not in stored
        stored[last.level, last.index] = last.hashes


class TestTiles:
    @pytest.mark.parametrize("count", TILES)
    def test_root_of_tiles(self, count: int) -> None:
        """The tree hash over tiles is that of RFC 6962; the last tile is the top. [SEQ-11]"""
        leaves = leaves_of(count)
        root, stored, last = tiled(leaves)
        assert root == tree_root(leaves)
        assert len(stored) == TILES[count]
        if last:
            assert tile_root(last.hashes) == root
        tree = TileTree(count, root)
        for index in {0, 1, 255, 256, count // 2, count - 256, count - 1} & set(range(count)):
            tree.prove(index, leaves[index], lambda level, place: stored[level, place])
            check_leaf_in_tiles(index, leaves[index], count, root, lambda level, place: stored[level, place])

    def test_verified_tiles_are_read_once(self) -> None:
        """Proving a list from its beginning reads each tile once."""
        leaves = leaves_of(1000)
        root, stored, _ = tiled(leaves)
        read = list[tuple[int, int]]()

        def get_tile(level: int, index: int) -> bytes:
            read.append((level, index))
            return stored[level, index]

        tree = TileTree(1000, root)
        for index, leaf in enumerate(leaves):
            tree.prove(index, leaf, get_tile)
        assert sorted(read) == sorted(stored)

    def test_kept_tiles_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A list longer than what is kept is still proved, with tiles read again."""
        monkeypatch.setattr("app.domain.merkle._KEPT_TILES", 2)
        leaves = leaves_of(1000)
        root, stored, _ = tiled(leaves)
        tree = TileTree(1000, root)
        for index in [0, 300, 600, 900, 0, 999]:
            tree.prove(index, leaves[index], lambda level, place: stored[level, place])
            assert len(tree._bottom) <= 2

    def test_no_other_leaf_is_proved(self) -> None:
        """A swapped, replayed or foreign leaf, and an index outside of the list, are refused. [SEQ-11]"""
        leaves = leaves_of(700)
        root, stored, _ = tiled(leaves)
        tree = TileTree(700, root)
        for index, leaf in ((0, leaves[1]), (1, leaves[257]), (699, leaf_hash(b"foreign")), (5, b"")):
            with pytest.raises(ProofInvalid, match="committed"):
                tree.prove(index, leaf, lambda level, place: stored[level, place])
        for index in (-1, 700):
            with pytest.raises(ProofInvalid, match="no leaf"):
                tree.prove(index, leaves[0], lambda level, place: stored[level, place])

    def test_altered_tiles(self) -> None:
        """A thousand alterations of stored tiles, none accepted, whatever leaf is asked for. [SEQ-11]"""
        leaves = leaves_of(700)
        root, stored, _ = tiled(leaves)
        chance = random.Random(6962)
        for _ in range(1000):
            place = chance.choice(sorted(stored))
            changed = _changed(stored[place], chance)
            start = place[1] * 256 if place[0] == 0 else 0
            index = chance.randrange(start, min(700, start + 256) if place[0] == 0 else 700)
            altered = stored | {place: changed}
            claimed = altered[0, index // 256][index % 256 * HASH_SIZE :][:HASH_SIZE]
            for leaf in (leaves[index], claimed):
                with pytest.raises(ProofInvalid):
                    check_leaf_in_tiles(index, leaf, 700, root, tiles_of(altered))


def tiles_of(held: Mapping[tuple[int, int], bytes]) -> Callable[[int, int], bytes]:
    """Return how a store of these tiles answers."""
    return lambda level, index: held[level, index]


def _changed(tile: bytes, chance: random.Random) -> bytes:
    """The tile with a bit flipped, a hash lost, a hash doubled, or two hashes swapped."""
    hashes = [tile[i : i + HASH_SIZE] for i in range(0, len(tile), HASH_SIZE)]
    first, second = chance.sample(range(len(hashes)), 2)
    match chance.randrange(5):
        case 0:
            position = chance.randrange(len(tile))
            return tile[:position] + bytes([tile[position] ^ 1 << chance.randrange(8)]) + tile[position + 1 :]
        case 1:
            del hashes[first]
        case 2:
            hashes.insert(first, hashes[second])
        case 3:
            return tile[: chance.randrange(len(tile))]
        case _:
            hashes[first], hashes[second] = hashes[second], hashes[first]
    return b"".join(hashes)
