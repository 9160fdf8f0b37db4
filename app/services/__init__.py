"""One function per thing a person does; the one door (`audited`) owns the transaction."""
