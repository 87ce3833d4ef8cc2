// What scrolls sideways can be reached by the keyboard, in either renderer; finish_site puts this at the end of every page.
// A box that Quarto folds is opened by the keyboard as well, and says what it is.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('.callout-header[data-bs-toggle]')) {
    box.setAttribute('role', 'button');
    box.removeAttribute('aria-label');       // its title is its name
    box.tabIndex = 0;
    box.addEventListener('keydown', e => {
      if (e.key !== 'Enter' && e.key !== ' ') return;
      e.preventDefault();
      box.click();
    });
  }
});
addEventListener('load', () => setTimeout(() => {
  const wide = e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1;
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX + getComputedStyle(e).overflowY);
  for (const d of document.querySelectorAll('article, main.content')) {
    for (const e of d.querySelectorAll('pre, pre > code, div, table, math, p, span.math')) {
      if (e.tabIndex < 0 && wide(e) && scrolls(e)) e.tabIndex = 0;
    }
  }
}, 100));

// Tables of sentences are marked, and each of their cells says of which column it is: styles.css reads both on narrow screens.
addEventListener('load', () => {
  const rows = t => [...t.tBodies].flatMap(b => [...b.rows]);
  const longest = (t, i) => Math.max(0, ...rows(t).map(r => r.cells[i] ? r.cells[i].textContent.trim().length : 0));
  for (const t of document.querySelectorAll('article table, main.content table')) {
    const head = t.tHead && t.tHead.rows[0] ? [...t.tHead.rows[0].cells] : [];
    const sentences = head.filter((_, i) => longest(t, i) > 40).length;
    const numbers = head.filter(cell => getComputedStyle(cell).textAlign === 'right').length;
    if (head.length < 3 || !sentences || numbers > 2) continue;
    t.dataset.words = sentences === 1 && !t.closest('.cell-output') ? 'one' : 'several';     // one: fields, names, chapters
    t.setAttribute('role', 'table');
    for (const part of [t.tHead, ...t.tBodies]) part.setAttribute('role', 'rowgroup');
    for (const row of t.rows) row.setAttribute('role', 'row');
    for (const cell of head) cell.setAttribute('role', 'columnheader');
    for (const row of rows(t)) {
      [...row.cells].forEach((cell, i) => {
        cell.setAttribute('role', 'cell');
        if (head[i]) cell.dataset.of = head[i].textContent.trim();
        if (cell.textContent.length > 40) cell.dataset.long = '';
      });
    }
  }
});
