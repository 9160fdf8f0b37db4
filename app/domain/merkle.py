"""Merkle trees as in RFC 6962, section 2.1: hashes, the growing log, proofs, and the tiles of long lists.

Leaf and interior hashes have different first bytes, so neither can pass for the other.

Three uses: the trail grows leaf by leaf (``Frontier``) and stores its complete interior nodes, from which
proofs are made; a commitment is a tree over a handful of given hashes (``tree_root``); a list or kit map of up
to millions of leaves is stored as tiles of 256 hashes (``tiles``, ``TileTree``), so that one leaf is proved by
reading one tile of each level.
"""

import hashlib
import hmac
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from app.errors import ProofInvalid

HASH_SIZE: Final = 32
TILE_WIDTH: Final = 256
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_SIZE_BYTES: Final = 8
# Verified bottom tiles that are kept: 8 MiB. The tiles above them are few and are kept always.
_KEPT_TILES: Final = 1024

GetTile = Callable[[int, int], bytes]
"""Gives the hashes of the tile (level, index) as they are stored, not yet verified."""


def leaf_hash(content: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 ‖ content)."""
    return hashlib.sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an interior node: SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def salted_leaf(salt: bytes, content: bytes) -> bytes:
    """Return a leaf that no guessing finds: SHA-256(0x00 ‖ salt ‖ content) (rule A8)."""
    return hashlib.sha256(b"\x00" + salt + content).digest()


def restricted_hash(salt: bytes, part: bytes) -> bytes:
    """Return what a public entry holds of its restricted part: SHA-256(0x02 ‖ salt ‖ part) (rule E3)."""
    return hashlib.sha256(b"\x02" + salt + part).digest()


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 tree hash over leaf hashes; SHA-256 of nothing for an empty tree."""
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    sha256 = hashlib.sha256
    while len(level) > 1:
        # A hash without a partner moves up unchanged: this is the RFC's split at the largest power of two, from below.
        lone = level[-1:] if len(level) & 1 else []
        level = [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)] + lone
    return level[0]


# -- the growing log ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CompletedNode:
    """An interior node over ``2**level`` leaves, the ``index``-th of its level, that will never change again."""

    level: int
    index: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Frontier:
    """What a log must remember to grow: its size and its complete subtrees' roots, the largest first."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> "tuple[Frontier, tuple[CompletedNode, ...]]":
        """Return the log grown by one leaf hash, and the interior nodes (level >= 1) to be stored for it."""
        hashes = list(self.hashes)
        completed = []
        node, level, index = leaf, 0, self.size
        while index & 1:
            node = node_hash(hashes.pop(), node)
            level += 1
            index >>= 1
            completed.append(CompletedNode(level, index, node))
        hashes.append(node)
        return Frontier(self.size + 1, tuple(hashes)), tuple(completed)

    def root(self) -> bytes:
        """Return the tree hash of the log at this size."""
        return _fold(self.hashes)

    def to_bytes(self) -> bytes:
        """Return what the head row stores and its MAC covers: 8-byte big-endian size, then the hashes."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, stored: bytes) -> "Frontier":
        """Return the frontier that ``to_bytes`` wrote; raises ProofInvalid when hashes lack or are too many."""
        size = int.from_bytes(stored[:_SIZE_BYTES], "big")
        if len(stored) != _SIZE_BYTES + HASH_SIZE * size.bit_count():
            raise ProofInvalid("The stored head of the log does not have one hash for each complete subtree.")
        return cls(size, _split(stored[_SIZE_BYTES:]))


def _fold(hashes: Sequence[bytes]) -> bytes:
    """Return the tree hash over neighbouring complete subtrees, the largest first."""
    if not hashes:
        return EMPTY_ROOT
    node = hashes[-1]
    for left in reversed(hashes[:-1]):
        node = node_hash(left, node)
    return node


def _split(joined: bytes) -> tuple[bytes, ...]:
    """Return the hashes that stand one after the other in ``joined``."""
    return tuple(joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE))


# -- proofs from stored nodes ------------------------------------------------------------------------------------------

Place = tuple[int, int]
"""(level, index) of a stored node: level 0 is an entry's hash, above it are complete interior nodes."""

_Range = tuple[int, int]


def root_nodes(size: int) -> tuple[Place, ...]:
    """Return the places of the complete subtrees that make up a log of this size, the largest first."""
    return _places(0, size)


def root_from_nodes(size: int, nodes: Mapping[Place, bytes]) -> bytes:
    """Return the root at this size from the nodes that ``root_nodes`` names; raises ProofInvalid."""
    return _hash_of((0, size), nodes)


def inclusion_nodes(index: int, size: int) -> tuple[Place, ...]:
    """Return the places of the nodes that ``inclusion_proof`` needs, each once, for one query.

    Raises ``ValueError`` when the log of this size has no such entry.
    """
    return tuple(place for start, end in _inclusion_ranges(index, size) for place in _places(start, end))


def inclusion_proof(index: int, size: int, nodes: Mapping[Place, bytes]) -> tuple[bytes, ...]:
    """Return the audit path of an entry at this size; raises ProofInvalid when a node is not stored."""
    return tuple(_hash_of(span, nodes) for span in _inclusion_ranges(index, size))


def consistency_nodes(old_size: int, new_size: int) -> tuple[Place, ...]:
    """Return the places of the nodes that ``consistency_proof`` needs, each once, for one query.

    Raises ``ValueError`` unless ``0 <= old_size <= new_size``.
    """
    return tuple(place for start, end in _consistency_ranges(old_size, new_size) for place in _places(start, end))


def consistency_proof(old_size: int, new_size: int, nodes: Mapping[Place, bytes]) -> tuple[bytes, ...]:
    """Return the RFC 6962 proof that the log only grew; raises ProofInvalid when a node is not stored."""
    return tuple(_hash_of(span, nodes) for span in _consistency_ranges(old_size, new_size))


def _inclusion_ranges(index: int, size: int) -> list[_Range]:
    """Return the ranges of leaves whose tree hashes are the audit path, from the leaf upwards."""
    if not 0 <= index < size:
        raise ValueError(f"a log of size {size} has no entry {index}")
    ranges: list[_Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _largest_power_below(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def _consistency_ranges(old_size: int, new_size: int) -> list[_Range]:
    """Return the ranges of leaves whose tree hashes are the proof (SUBPROOF of RFC 6962, 2.1.2)."""
    if not 0 <= old_size <= new_size:
        raise ValueError(f"a log cannot have grown from size {old_size} to {new_size}")
    ranges: list[_Range] = []
    if old_size == 0:
        return ranges
    start, end = 0, new_size
    while end != old_size:
        middle = start + _largest_power_below(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    # The checker knows the old root: an old tree that is one complete subtree is left out.
    if start:
        ranges.append((start, end))
    return ranges[::-1]


def _largest_power_below(count: int) -> int:
    """Return the largest power of two smaller than ``count`` (at least 2): where RFC 6962 splits."""
    return 1 << ((count - 1).bit_length() - 1)


def _places(start: int, end: int) -> tuple[Place, ...]:
    """Return the complete subtrees that make up the leaves from ``start`` to before ``end``, the largest first."""
    places = []
    while start < end:
        level = (end - start).bit_length() - 1
        places.append((level, start >> level))
        start += 1 << level
    return tuple(places)


def _hash_of(span: _Range, nodes: Mapping[Place, bytes]) -> bytes:
    """Return the tree hash over a range of leaves from the stored nodes."""
    try:
        return _fold([nodes[place] for place in _places(*span)])
    except KeyError as missing:
        level, index = missing.args[0]
        raise ProofInvalid(f"The log does not hold its node {index} of level {level}.") from None


# -- checking proofs ---------------------------------------------------------------------------------------------------


def check_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Return when the leaf hash stands at ``index`` in this tree; raises ProofInvalid otherwise.

    Source: RFC 9162, 2.1.3.2 (the same tree as RFC 6962, with the checks written out).
    """
    if not 0 <= index < size:
        raise ProofInvalid(f"A tree of size {size} has no leaf {index}.")
    node, position, last = leaf, index, size - 1
    for step in proof:
        if last == 0:
            raise ProofInvalid("The proof is longer than the tree is high.")
        if position & 1 or position == last:
            node = node_hash(step, node)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            node = node_hash(node, step)
        position >>= 1
        last >>= 1
    if last or not hmac.compare_digest(node, root):
        raise ProofInvalid(f"Leaf {index} does not lead to the root of the tree.")


def check_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Return when the new tree begins with all of the old one; raises ProofInvalid otherwise.

    Source: RFC 9162, 2.1.4.2.
    """
    if not 0 <= old_size <= new_size:
        raise ProofInvalid(f"A log cannot have grown from size {old_size} to {new_size}.")
    if old_size in {0, new_size}:
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if proof or not hmac.compare_digest(old_root, expected):
            raise ProofInvalid("The two trees are not one log.")
        return
    # An old tree that is one complete subtree is not repeated in the proof.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        raise ProofInvalid("The proof of growth is empty.")
    old, new = _walk(old_size, new_size, path)
    if not hmac.compare_digest(old, old_root) or not hmac.compare_digest(new, new_root):
        raise ProofInvalid(f"The log of size {new_size} does not begin with that of size {old_size}.")


def _walk(old_size: int, new_size: int, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the two roots that the path of a consistency proof leads to; raises ProofInvalid."""
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old = new = path[0]
    for step in path[1:]:
        if last == 0:
            raise ProofInvalid("The proof of growth is longer than the tree is high.")
        if position & 1 or position == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while position and not position & 1:
                position >>= 1
                last >>= 1
        else:
            new = node_hash(new, step)
        position >>= 1
        last >>= 1
    if last:
        raise ProofInvalid("The proof of growth is shorter than the tree is high.")
    return old, new


# -- tiles of long lists -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """Up to 256 neighbouring hashes: of leaves at level 0, of tiles of the level below above that."""

    level: int
    index: int
    hashes: bytes


def tile_root(hashes: bytes) -> bytes:
    """Return the tree hash over the hashes of one tile."""
    level = hashes
    sha256 = hashlib.sha256
    while len(level) > HASH_SIZE:
        paired = len(level) - len(level) % (2 * HASH_SIZE)
        level = b"".join([sha256(b"\x01" + level[i : i + 64]).digest() for i in range(0, paired, 64)]) + level[paired:]
    return level


def tiles(leaves: Iterable[bytes]) -> Generator[Tile, None, bytes]:
    """Yield the tiles over leaf hashes as they stream by, and return the root; holds one tile per level.

    A tile comes before the one above it; the last one is the top, and its ``tile_root`` is the root. The tree
    hash over the roots of the tiles is the RFC 6962 tree hash over the leaves, because every split of the RFC
    above 256 leaves falls on a multiple of 256; so the last tile of each level may be partly filled. No leaves:
    no tile, and the root of the empty tree.
    """
    source = iter(leaves)
    rising: list[bytearray] = []
    made: list[int] = []
    count = 0
    while chunk := b"".join(islice(source, TILE_WIDTH)):
        yield Tile(0, count, chunk)
        count += 1
        node, above = tile_root(chunk), 0
        while True:
            if above == len(rising):
                rising.append(bytearray())
                made.append(0)
            rising[above] += node
            if len(rising[above]) < TILE_WIDTH * HASH_SIZE:
                break
            tile = Tile(above + 1, made[above], bytes(rising[above]))
            yield tile
            rising[above].clear()
            made[above] += 1
            node, above = tile_root(tile.hashes), above + 1
    return (yield from _close(rising, made))


def _close(rising: Sequence[bytearray], made: Sequence[int]) -> Generator[Tile, None, bytes]:
    """Yield the partly filled tile of each level above the leaves, and return the root."""
    node = b""
    for level, started in enumerate(rising, start=1):
        hashes = bytes(started) + node
        if level == len(rising) and len(hashes) == HASH_SIZE:
            return hashes
        if hashes:
            yield Tile(level, made[level - 1], hashes)
        node = tile_root(hashes)
    return node or EMPTY_ROOT


def check_leaf_in_tiles(index: int, leaf: bytes, size: int, root: bytes, get_tile: GetTile) -> None:
    """Return when the leaf hash stands at ``index`` in this tiled tree; raises ProofInvalid otherwise."""
    TileTree(size, root).prove(index, leaf, get_tile)


class TileTree:
    """A tiled tree of known size and root: stored tiles are verified against it when met, and kept.

    A list is used from its beginning, so most proofs find their tile verified already and cost one comparison.
    """

    def __init__(self, size: int, root: bytes) -> None:
        """Take the size and the root from what was signed, never from where the tiles are stored."""
        self.size = size
        self.root = root
        self._bottom: dict[int, bytes] = {}
        self._above: dict[Place, bytes] = {}
        self._widths = [size]
        while self._widths[-1] > TILE_WIDTH:
            self._widths.append(-(-self._widths[-1] // TILE_WIDTH))

    def prove(self, index: int, leaf: bytes, get_tile: GetTile) -> None:
        """Return when the leaf hash stands at ``index``; reads at most one tile of each level.

        Raises ProofInvalid when a tile does not lead to the root, or when another leaf stands there.
        """
        if not 0 <= index < self.size:
            raise ProofInvalid(f"The list of {self.size} leaves has no leaf {index}.")
        hashes = self._bottom.get(index // TILE_WIDTH)
        if hashes is None:
            hashes = self._verified(0, index // TILE_WIDTH, get_tile)
            if len(self._bottom) >= _KEPT_TILES:
                self._bottom.clear()
            self._bottom[index // TILE_WIDTH] = hashes
        if not hmac.compare_digest(_nth(hashes, index % TILE_WIDTH), leaf):
            raise ProofInvalid(f"Position {index} does not hold what was committed to.")

    def _verified(self, level: int, index: int, get_tile: GetTile) -> bytes:
        """Return the hashes of a tile that leads to the root."""
        hashes = get_tile(level, index)
        width = min(TILE_WIDTH, self._widths[level] - index * TILE_WIDTH)
        if len(hashes) != width * HASH_SIZE:
            raise ProofInvalid(f"Tile {index} of level {level} does not hold its {width} hashes.")
        if not hmac.compare_digest(tile_root(hashes), self._expected(level, index, get_tile)):
            raise ProofInvalid(f"Tile {index} of level {level} does not lead to the root.")
        return hashes

    def _expected(self, level: int, index: int, get_tile: GetTile) -> bytes:
        """Return what the root of a tile must be: its place in the tile above, or the root of the tree."""
        if level == len(self._widths) - 1:
            return self.root
        place = (level + 1, index // TILE_WIDTH)
        parent = self._above.get(place)
        if parent is None:
            parent = self._above[place] = self._verified(*place, get_tile)
        return _nth(parent, index % TILE_WIDTH)


def _nth(hashes: bytes, index: int) -> bytes:
    """Return one hash of a tile."""
    return hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE]
