'use strict';
// A click on a heading sorts its table: numbers by value, largest first, texts by letters.
for (const box of document.querySelectorAll('.sortable')) {
  const body = box.querySelector('tbody');
  const heads = [...box.querySelectorAll('thead th')];
  const by = (column) => (row) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a === 'number' && typeof b === 'number') return a === b ? 0 : a < b ? -1 : 1;
    if (typeof a !== typeof b) return typeof a === 'number' ? 1 : -1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  heads.forEach((head, column) => {
    const sort = () => {
      const numbers = head.classList.contains('n');
      const before = head.getAttribute('aria-sort');
      const up = before ? before !== 'ascending' : !numbers;
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const key = by(column);
      const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
      body.append(...rows);
    };
    head.tabIndex = 0;
    head.addEventListener('click', sort);
    head.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') {
        event.preventDefault();
        sort();
      }
    });
  });
}
