"""At use, every slot and every kit is proved to the root that was signed before the first subject (rule A8, SEQ-11).

The signature and the strata's roots are verified once a process, the tiles of hashes when they are met; after that a proof is a
comparison in memory. A swapped, replayed, re-ordered or re-labelled value is refused with ``IntegrityBroken``.
"""

import json
from threading import Lock
from uuid import UUID

from app.domain.merkle import TileTree, salted_leaf, tree_root
from app.domain.notes import kit_commitment_text, list_commitment_text
from app.domain.schedules import Specification
from app.domain.sealed import Column, SealContext
from app.domain.words import Arm
from app.errors import IntegrityBroken
from app.sealing.notes import verify_note
from app.sealing.ring import KeyRing
from app.sealing.signing import SigningKeys
from app.services.handovers import take_in_signing_keys
from app.storage import commitments
from app.storage.database import Transaction
from app.storage.studies import StudyHead


class CommitmentKeeper:
    """Knows the trees that were verified against a signature; tiles are read from the database when first needed."""

    def __init__(self, deployment_id: UUID, ring: KeyRing, signing: SigningKeys) -> None:
        """Begin with nothing verified."""
        self._deployment_id = deployment_id
        self._ring = ring
        self._signing = signing
        self._lock = Lock()
        self._trees: dict[UUID, TileTree] = {}
        self._slot_trees: dict[tuple[UUID, UUID], UUID] = {}
        self._arms: dict[UUID, tuple[Arm, ...]] = {}

    def prove_slot(
        self,
        tx: Transaction,
        study: StudyHead,
        schedule_id: UUID,
        stratum_id: UUID,
        position: int,
        leaf: bytes,
    ) -> None:
        """Return when the leaf stands at its position of the signed list; raise ``IntegrityBroken`` otherwise."""
        tree_id = self._slot_trees.get((schedule_id, stratum_id))
        if tree_id is None:
            self.verify_list(tx, study, schedule_id)
            tree_id = self._slot_trees.get((schedule_id, stratum_id))
        if tree_id is None:
            message = "The stratum is not part of the list that was signed."
            raise IntegrityBroken(message)
        self._prove(tx, study, tree_id, position, leaf)

    def signed_arms(self, tx: Transaction, study: StudyHead, schedule_id: UUID) -> tuple[Arm, ...]:
        """Return arms and treatment words as the approver of a list signed them, whatever the table of arms says by now."""
        if schedule_id not in self._arms:
            self.verify_list(tx, study, schedule_id)
        return self._arms[schedule_id]

    def prove_kit(self, tx: Transaction, study: StudyHead, consignment_id: UUID, map_index: int, leaf: bytes) -> None:
        """Return when the leaf stands in the consignment's signed kit map; raise ``IntegrityBroken`` otherwise."""
        if consignment_id not in self._trees:
            self.verify_kit_map(tx, study, consignment_id)
        self._prove(tx, study, consignment_id, map_index, leaf)

    def verify_list(self, tx: Transaction, study: StudyHead, schedule_id: UUID) -> None:
        """Take in an approved list: signature, specification leaf and every stratum's root lead to one root."""
        kept = commitments.get_list_commitment(tx, study.study_id, schedule_id)
        place = (str(schedule_id),)
        specification = self._ring.open(
            SealContext(Column.SPECIFICATION, study.study_code, place), kept.sealed_specification
        )
        salt = self._ring.open(SealContext(Column.SEED, study.study_code, place), kept.sealed_seed)[-32:]
        root = tree_root([salted_leaf(salt, specification), *(stratum.root for stratum in kept.strata)])
        self._check_note(
            tx,
            kept.note,
            list_commitment_text(str(self._deployment_id), study.study_code, str(schedule_id), root),
        )
        with self._lock:
            self._arms[schedule_id] = Specification.from_document(json.loads(specification)).arms
            for stratum in kept.strata:
                self._trees[stratum.tree_id] = TileTree(stratum.slot_count, stratum.root)
                self._slot_trees[schedule_id, stratum.stratum_id] = stratum.tree_id

    def verify_kit_map(self, tx: Transaction, study: StudyHead, consignment_id: UUID) -> None:
        """Take in the kit map of a consignment: its signature leads to its root."""
        kept = commitments.get_kit_commitment(tx, study.study_id, consignment_id)
        self._check_note(
            tx,
            kept.note,
            kit_commitment_text(str(self._deployment_id), study.study_code, kept.consignment_code, kept.root),
        )
        with self._lock:
            self._trees[consignment_id] = TileTree(kept.kit_count, kept.root)

    def _prove(self, tx: Transaction, study: StudyHead, tree_id: UUID, index: int, leaf: bytes) -> None:
        tree = self._trees[tree_id]
        with self._lock:
            tree.prove(
                index,
                leaf,
                lambda level, tile: commitments.get_tile(tx, study.study_id, tree_id, level, tile),
            )

    def _check_note(self, tx: Transaction, note: str | None, expected: str) -> None:
        if note is None or self._signed_text(tx, note) != expected:
            message = "The commitment was not signed by this service for this list or kit map."
            raise IntegrityBroken(message)

    def _signed_text(self, tx: Transaction, note: str) -> str:
        try:
            return verify_note(note, self._signing.vkeys())
        except IntegrityBroken:
            # Perhaps by a key that another process has rotated to since this one began.
            take_in_signing_keys(tx, self._signing)
            return verify_note(note, self._signing.vkeys())
